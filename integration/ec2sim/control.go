package ec2sim

import "net/http"

func (s *Sim) routeControl(*http.ServeMux) {}
