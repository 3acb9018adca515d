"""The list, and the form that signs it."""

from django import forms
from django.conf import settings
from django.core.paginator import Paginator
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST, require_safe

from guestbook.models import Entry

PER_PAGE = 8


class EntryForm(forms.ModelForm):
    class Meta:
        model = Entry
        fields = ["name", "message"]


def site(request):
    """What all templates get."""
    return {"site": settings.SITE_TITLE}


@require_safe
def entries(request):
    # Who has signed before need not write the name again.
    new = {"name": request.session.get("name", ""), "message": ""}
    return entries_page(request, new, problems={}, status=200)


@require_POST
def sign(request):
    form = EntryForm(request.POST)
    if not form.is_valid():
        new = {"name": request.POST.get("name", ""), "message": request.POST.get("message", "")}
        return entries_page(request, new, form.errors, status=422)
    entry = form.save()
    request.session["name"] = entry.name
    return redirect(f"/#entry-{entry.id}")


def entries_page(request, new, problems, status):
    page = Paginator(Entry.objects.all(), PER_PAGE).get_page(request.GET.get("page", 1))
    context = {
        "section": "entries",
        "new": new,
        "problems": problems,
        "page": page,
        "count": page.paginator.count,
    }
    return render(request, "entries.html", context, status=status)
