"""Hello from Django over ASGI: one view and no middleware."""

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    DEBUG=False,
    MIDDLEWARE=[],
    ROOT_URLCONF=__name__,
    SECRET_KEY="signs nothing",
)


async def hello(request):
    return HttpResponse(
        "Hello, World!",
        content_type="text/plain; charset=utf-8",
        headers={"content-length": "13"},
    )


urlpatterns = [path("", hello)]
application = get_asgi_application()
