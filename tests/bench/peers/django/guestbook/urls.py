"""The paths of the page and of its form."""

from django.urls import path

from guestbook import views

urlpatterns = [path("", views.entries), path("entries", views.sign)]
