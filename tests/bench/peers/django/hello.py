"""What both applications that say hello share: one view, no middleware."""

from django.conf import settings
from django.http import HttpResponse


def configure(urls):
    settings.configure(
        ALLOWED_HOSTS=["127.0.0.1"],
        DEBUG=False,
        MIDDLEWARE=[],
        ROOT_URLCONF=urls,
        SECRET_KEY="signs nothing",
    )


def answer():
    return HttpResponse(
        "Hello, World!",
        content_type="text/plain; charset=utf-8",
        headers={"content-length": "13"},
    )
