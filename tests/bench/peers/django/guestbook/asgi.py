"""The application over ASGI. Django runs its sync views on threads."""

import os

from django.core.asgi import get_asgi_application

os.environ["DJANGO_SETTINGS_MODULE"] = "guestbook.settings_asgi"
application = get_asgi_application()
