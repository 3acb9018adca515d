"""Hello from Django over WSGI."""

from django.core.wsgi import get_wsgi_application
from django.urls import path

import hello

hello.configure(__name__)


def view(request):
    return hello.answer()


urlpatterns = [path("", view)]
application = get_wsgi_application()
