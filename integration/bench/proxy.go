package main

import (
	"maps"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
)

// proxy stands before DynamoDB: it counts requests by operation, and can hold
// the replies of Queries until as many as wanted have asked.
type proxy struct {
	*httputil.ReverseProxy

	mu      sync.Mutex
	counts  map[string]int
	holding int // so many Queries are still to come
	asked   chan struct{}
}

func newProxy(endpoint string) *proxy {
	target, err := url.Parse(endpoint)
	if err != nil {
		panic(err) // our own server's
	}
	p := &proxy{ReverseProxy: httputil.NewSingleHostReverseProxy(target), counts: map[string]int{}}
	p.ModifyResponse = func(r *http.Response) error {
		if operation(r.Request) != "Query" {
			return nil
		}
		p.mu.Lock()
		asked := p.asked
		if p.holding > 0 {
			if p.holding--; p.holding == 0 {
				close(asked)
			}
		} else {
			asked = nil // not one of the first
		}
		p.mu.Unlock()
		if asked != nil {
			select {
			case <-asked:
			case <-r.Request.Context().Done(): // nobody waits for it any more
			}
		}
		return nil
	}
	return p
}

func operation(r *http.Request) string {
	_, op, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	return op
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.counts[operation(r)]++
	p.mu.Unlock()
	p.ReverseProxy.ServeHTTP(w, r)
}

func (p *proxy) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.counts)
}

func (p *proxy) calls() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.counts)
}

// hold keeps back the replies of the next n Queries until all of them have come.
func (p *proxy) hold(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.holding, p.asked = n, make(chan struct{})
}
