"""Hello from Django over ASGI."""

from django.core.asgi import get_asgi_application
from django.urls import path

import hello

hello.configure(__name__)


async def view(request):
    return hello.answer()


urlpatterns = [path("", view)]
application = get_asgi_application()
