"""A component of wasi:http 0.2 in Python, which knows nothing of Amphi. The tests build it with componentize-py, with the WIT of the
crate `wasip2`, as one would by hand, from this folder:

componentize-py -d WIT -w wasi:http/proxy componentize http_p2_app -o http.wasm
"""
from componentize_py_types import Err, Ok
from wit_world import exports
from wit_world.imports.streams import StreamError_Closed
from wit_world.imports.types import Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam

COUNT = 0


class IncomingHandler(exports.IncomingHandler):
    def handle(self, request: IncomingRequest, response_out: ResponseOutparam) -> None:
        global COUNT
        COUNT += 1
        match request.path_with_query().rsplit("/")[-1]:
            case "hello":
                answer(response_out, [b"Hello from wasi:http 0.2 in Python\n"])
            case "echo":
                answer(response_out, pieces(request))
            case "headers":
                lines = [f"{name}={value.decode()}\n".encode() for name, value in request.headers().entries()]
                answer(response_out, lines)
            case "count":
                answer(response_out, [f"{COUNT}\n".encode()])
            case "fail":
                raise ValueError("this component fails on purpose")
            case _:
                answer(response_out, [b"no such path\n"], 404)


def pieces(request: IncomingRequest):
    """The body of a request, as it is read."""
    with request.consume() as body, body.stream() as stream:
        while True:
            try:
                yield stream.blocking_read(65536)
            except Err as error:
                if isinstance(error.value, StreamError_Closed):
                    return
                raise


def answer(response_out: ResponseOutparam, body, status: int = 200) -> None:
    response = OutgoingResponse(Fields.from_list([("content-type", b"text/plain; charset=utf-8")]))
    response.set_status_code(status)
    outgoing = response.body()
    ResponseOutparam.set(response_out, Ok(response))
    with outgoing.write() as stream:
        for piece in body:
            for start in range(0, len(piece), 4096):
                stream.blocking_write_and_flush(piece[start:start + 4096])
    OutgoingBody.finish(outgoing, None)
