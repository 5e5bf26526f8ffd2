// A service as they are written without any mesh: it puts a leased key /services/<name>/<host:port> into etcd with the
// official client, keeps it alive, and serves HTTP there.
//
//	etcd-service ETCD NAME HOST:PORT [VALUE]
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Seconds that a key outlives its owner.
const ttl = 2

func main() {
	if len(os.Args) < 4 {
		log.Fatal("usage: etcd-service ETCD NAME HOST:PORT [VALUE]")
	}
	etcd, name, address, value := os.Args[1], os.Args[2], os.Args[3], ""
	if len(os.Args) > 4 {
		value = os.Args[4]
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	if err := register(etcd, "/services/"+name+"/"+address, value); err != nil {
		log.Fatal(err)
	}
	log.Print("registered")
	log.Fatal(http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s at %s was asked for %s\n", name, address, r.URL.Path)
	})))
}

func register(etcd, key, value string) error {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{etcd}, DialTimeout: 5 * time.Second})
	if err != nil {
		return err
	}
	ctx := context.Background()
	lease, err := client.Grant(ctx, ttl)
	if err != nil {
		return err
	}
	if _, err := client.Put(ctx, key, value, clientv3.WithLease(lease.ID)); err != nil {
		return err
	}
	kept, err := client.KeepAlive(ctx, lease.ID)
	if err != nil {
		return err
	}
	go func() {
		for range kept {
		}
		log.Fatal("the lease is lost")
	}()
	return nil
}
