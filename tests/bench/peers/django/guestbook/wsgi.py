"""The application over WSGI."""

import os

from django.core.wsgi import get_wsgi_application

os.environ["DJANGO_SETTINGS_MODULE"] = "guestbook.settings"
application = get_wsgi_application()
