"""A gRPC service by its descriptors: tells in its answers what it was asked, and its descriptors by server reflection (of
which Python's library has v1alpha). Arguments: descriptor set, address."""

import sys
import time
from concurrent import futures

import grpc
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection

pool = descriptor_pool.DescriptorPool()
descriptors = descriptor_pb2.FileDescriptorSet.FromString(open(sys.argv[1], "rb").read())
for file in descriptors.file:
    pool.Add(file)
service = pool.FindServiceByName("battle.v1.Battle")


def kind(name):
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


Seen, Event, HttpBody, Trouble = (
    kind(name) for name in ("battle.v1.Seen", "battle.v1.Event", "google.api.HttpBody", "battle.v1.Trouble")
)


def pack(place, message):
    # Of this pool's own Any.
    place.type_url = "type.googleapis.com/" + message.DESCRIPTOR.full_name
    place.value = message.SerializeToString(deterministic=True)


def seen(name, requests):
    answer = Seen(call=name)
    for request in requests:
        pack(answer.request.add(), request)
    return answer


def fail(request, context):
    details = []
    if request.details == "known":
        details.append(Trouble(where="here", since=3))
    if request.details == "foreign":
        details.append(any_pb2.Any(type_url="type.googleapis.com/other.Thing", value=b"\x08\x01"))
    status = kind_of_status(request.code, request.message, details)
    if details:
        context.set_trailing_metadata([("grpc-status-details-bin", status)])
    code = next((code for code in grpc.StatusCode if code.value[0] == request.code), grpc.StatusCode.UNKNOWN)
    context.abort(code, request.message)


def kind_of_status(code, message, details):
    # google.rpc.Status, written by hand: it is not among the descriptors.
    out = bytes([8, code]) + bytes([18, len(message.encode())]) + message.encode()
    for detail in details:
        packed = detail
        if not isinstance(detail, any_pb2.Any):
            packed = any_pb2.Any()
            pack(packed, detail)
        packed = packed.SerializeToString()
        out += bytes([26, len(packed)]) + packed
    return out


def handler(method):
    name = method.name
    request = message_factory.GetMessageClass(method.input_type)

    def unary(message, context):
        if name == "Fail":
            fail(message, context)
        if name in ("Echo", "First", "Put"):
            return message
        if name == "Map":
            if message.path == "none":
                return HttpBody()
            return HttpBody(content_type="image/x-map", data=b"\x00\xff" + message.path.encode())
        if message.DESCRIPTOR.full_name == "battle.v1.GetRoomRequest" and message.view == "slow":
            time.sleep(5)
        context.set_trailing_metadata([("x-trailing", "there")])
        return seen(name, [message])

    def watch(message, context):
        if message.fail_after < 0:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such room")
        for number in range(1, message.count + 1):
            if message.fail_after and number > message.fail_after:
                context.abort(grpc.StatusCode.UNAVAILABLE, "the room is gone")
            yield Event(number=number, text=message.name)
            if message.count == 2:
                time.sleep(0.2)

    def collect(messages, context):
        return seen(name, list(messages))

    kinds = {
        (False, False): (grpc.unary_unary_rpc_method_handler, unary),
        (False, True): (grpc.unary_stream_rpc_method_handler, watch),
        (True, False): (grpc.stream_unary_rpc_method_handler, collect),
    }
    make, serve = kinds[method.client_streaming, method.server_streaming]
    return make(
        serve,
        request_deserializer=request.FromString,
        response_serializer=lambda message: message.SerializeToString(deterministic=True),
    )


server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
handlers = {method.name: handler(method) for method in service.methods}
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
reflection.enable_server_reflection([service.full_name, reflection.SERVICE_NAME], server, pool=pool)
if not server.add_insecure_port(sys.argv[2]):
    sys.exit("cannot listen on " + sys.argv[2])
server.start()
server.wait_for_termination()
