// A gRPC server that has nothing but gRPC's own health service, for the tests of active health checks:
// `health ADDRESS FLAG` does not serve while the file FLAG exists.
package main

import (
	"log"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

const poll = 20 * time.Millisecond

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: health ADDRESS FLAG")
	}
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	status := health.NewServer()
	go func() {
		for {
			serving := grpc_health_v1.HealthCheckResponse_SERVING
			if _, err := os.Stat(os.Args[2]); err == nil {
				serving = grpc_health_v1.HealthCheckResponse_NOT_SERVING
			}
			status.SetServingStatus("", serving)
			status.SetServingStatus("arena.v1.Battle", serving)
			time.Sleep(poll)
		}
	}()
	server := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(server, status)
	log.Fatal(server.Serve(listener))
}
