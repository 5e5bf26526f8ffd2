"""How long one exchange takes, as a program sees it: `median.py COUNT KIND HOST PORT` prints the median in microseconds.

http: a GET on a connection that stays. connect: the same on one of its own each. redis: PING on a connection that stays.
greeting: from connecting to the first bytes of a server that speaks first. grpc: an empty call of gRPC's interop server.
"""

import http.client
import socket
import statistics
import sys
import time


def http_get(host, port):
    connection = http.client.HTTPConnection(host, port)

    def one():
        connection.request("GET", "/")
        connection.getresponse().read()

    return one


def http_connect(host, port):
    return lambda: http_get(host, port)()


def redis(host, port):
    connection = socket.create_connection((host, port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def one():
        connection.sendall(b"PING\r\n")
        assert connection.recv(64) == b"+PONG\r\n"

    return one


def greeting(host, port):
    def one():
        with socket.create_connection((host, port)) as connection:
            assert connection.recv(256)

    return one


def grpc_call(host, port):
    import grpc

    channel = grpc.insecure_channel(f"{host}:{port}")
    call = channel.unary_unary("/grpc.testing.TestService/EmptyCall")
    return lambda: call(b"")


def main():
    count, kind, host, port = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    kinds = {
        "http": http_get,
        "connect": http_connect,
        "redis": redis,
        "greeting": greeting,
        "grpc": grpc_call,
    }
    one = kinds[kind](host, port)
    for _ in range(max(1, count // 10)):
        one()
    taken = []
    for _ in range(count):
        start = time.perf_counter_ns()
        one()
        taken.append(time.perf_counter_ns() - start)
    print(round(statistics.median(taken) / 1000, 1))


main()
