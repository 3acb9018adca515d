"""What the views of both modes share: their descriptions, and how values look in a response."""
from wit_world.imports.types import Response, ResponseBody_Bytes, ResponseBody_Stream, Route, ViewInfo, ViewKind_Route


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
        stream_body=False,
        middleware=[],
    )


VIEWS = [
    view(0, "hello", "GET", "/hello/{name}"),
    view(1, "insert", "POST", "/rows/{tag}", atomic=True),
    view(2, "fail", "GET", "/fail"),
    view(3, "lines", "GET", "/lines/{count}"),
]


def text(body: str, status: int = 200) -> Response:
    headers = [("content-type", "text/plain; charset=utf-8")]
    return Response(status, headers, ResponseBody_Bytes(body.encode()))


def stream() -> Response:
    """A response whose body `produce` writes while it is sent."""
    return Response(200, [("content-type", "text/plain; charset=utf-8")], ResponseBody_Stream(0))
