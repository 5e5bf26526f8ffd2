"""A proxyless gRPC client and server on C-core (see ../README.md)."""

import collections
import concurrent.futures
import json
import os
import sys
import threading
import time

import grpc
import grpc.experimental

# Whether certificates are asked for; what they are follows from xDS and the bootstrap.
SECURE = os.environ.get("XDS_CREDENTIALS") == "1"


def dial(target):
    if SECURE:
        return grpc.secure_channel(target, grpc.xds_channel_credentials(grpc.experimental.insecure_channel_credentials()))
    return grpc.insecure_channel(target)


def call(channels, order):
    """One unary call with empty messages; the answer's shape is in the README."""
    target = order["target"]
    if target not in channels:
        channels[target] = dial("xds:///" + target)
    method = channels[target].unary_unary(order["method"], _registered_method=False)
    metadata = list(order.get("headers", {}).items())
    begin = time.monotonic()
    try:
        _, answer = method.with_call(b"", timeout=order.get("timeout_ms", 5000) / 1000, metadata=metadata)
        result = {"code": 0, "by": dict(answer.initial_metadata()).get("x-echo", "")}
    except grpc.RpcError as error:
        result = {"code": error.code().value[0], "by": "", "message": error.details()}
    result["ms"] = int((time.monotonic() - begin) * 1000)
    return result


class Load:
    def __init__(self, channels, order):
        self.sent, self.failures, self.stopped = 0, collections.Counter(), threading.Event()
        self.thread = threading.Thread(target=self.run, args=(channels, order))
        self.thread.start()

    def run(self, channels, order):
        while not self.stopped.wait(order["interval_ms"] / 1000):
            result = call(channels, order)
            self.sent += 1
            if result["code"]:
                self.failures[f"{result['code']} {result['message']}"] += 1

    def stop(self):
        self.stopped.set()
        self.thread.join()
        return {"sent": self.sent, "failures": self.failures}


def client():
    channels, load = {}, None
    for line in sys.stdin:
        order = json.loads(line)
        if order["op"] == "call":
            answer = {"results": [call(channels, order) for _ in range(order.get("count", 1))]}
        elif order["op"] == "load":
            load, answer = Load(channels, order), {}
        else:
            answer = load.stop()
        print(json.dumps(answer), flush=True)


class Echo(grpc.GenericRpcHandler):
    def __init__(self, name):
        self.name = name

    def service(self, details):
        def answer(_request, context):
            context.send_initial_metadata([("x-echo", self.name)])
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


def server(address, name):
    # C-core logs the state of its listener, but has no callback for it in Python: the test calls until it is answered.
    pool = concurrent.futures.ThreadPoolExecutor(max_workers=4)
    listening = grpc.server(pool, handlers=[Echo(name)], xds=True)
    if SECURE:
        listening.add_secure_port(address, grpc.xds_server_credentials(grpc.insecure_server_credentials()))
    else:
        listening.add_insecure_port(address)
    listening.start()
    listening.wait_for_termination()


if __name__ == "__main__":
    client() if sys.argv[1] == "client" else server(*sys.argv[2:])
