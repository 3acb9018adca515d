"""What the views of both modes share: their descriptions, and how values look in a response."""
from wit_world.imports.types import Response, Route, ViewInfo, ViewKind_Route


def view(id: int, name: str, method: str, pattern: str, atomic: bool = False) -> ViewInfo:
    """The description of one view, without limits and options of its own."""
    return ViewInfo(
        id=id,
        name=name,
        kind=ViewKind_Route(Route(method, pattern)),
        atomic=atomic,
        read_only=False,
        isolation=None,
        retries=0,
        cpu_ms=None,
        timeout_ms=None,
        middleware=[],
    )


VIEWS = [
    view(0, "hello", "GET", "/hello/{name}"),
    view(1, "insert", "POST", "/rows/{tag}", atomic=True),
    view(2, "fail", "GET", "/fail"),
]


def text(body: str, status: int = 200) -> Response:
    return Response(status, [("content-type", "text/plain; charset=utf-8")], body.encode())
