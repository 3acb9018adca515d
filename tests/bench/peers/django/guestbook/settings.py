"""What `django-admin startproject` sets, as far as the page needs it, and the advice of the deployment checklist."""

import os

DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1"]
SECRET_KEY = "signs the sessions of a benchmark, and nothing else: not a secret"
ROOT_URLCONF = "guestbook.urls"
INSTALLED_APPS = ["guestbook"]

MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    # Sets `content-length`, without which servers close the connection or send chunks.
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
]

# As in Amphi, the browser keeps the session, signed. Django's default, a table, would take a third statement.
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"

# Outside of debug mode, Django parses each template once.
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {"context_processors": ["guestbook.views.site"]},
    }
]

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ["GUESTBOOK_DATABASE"],
        # Connections are kept, as in Amphi. By default each request would open one.
        "CONN_MAX_AGE": None,
    }
}

SITE_TITLE = "Guestbook"
