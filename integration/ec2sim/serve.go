package ec2sim

import (
	"bytes"
	"crypto/rand"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/volpool/volpool/integration/ec2sim/cloud"
	"go.uber.org/zap"
)

const namespace = "http://ec2.amazonaws.com/doc/2016-11-15/"

// serveEC2 answers one call of the Query protocol.
func (s *Sim) serveEC2(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		s.writeError(w, cloud.Refuse("MalformedQueryString", "The query string contains a syntax error"))
		return
	}
	action := r.Form.Get("Action")
	volume, instance := subject(r)
	if !s.pause(r, s.gate.count(action, caller(r))) {
		return
	}
	if s.Cloud.Faults.Take(cloud.RequestLost, action, volume, instance) != nil {
		panic(http.ErrAbortHandler)
	}
	reply, err := s.call(r, action, volume, instance)
	if hold := s.Cloud.Faults.Take(cloud.Hold, action, volume, instance); hold != nil {
		hold.Await(r.Context().Done())
	}
	if s.Cloud.Faults.Take(cloud.ReplyLost, action, volume, instance) != nil {
		panic(http.ErrAbortHandler)
	}
	if err != nil {
		s.log.Info("refused", zap.String("action", action), zap.Error(err))
		s.writeError(w, err)
		return
	}
	s.writeReply(w, action, reply)
}

// call does what the request asks for, or tells why not.
func (s *Sim) call(r *http.Request, action, volume, instance string) (any, error) {
	if r.Header.Get("Authorization") == "" {
		// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
		return nil, &cloud.Error{Code: "MissingAuthenticationToken", Message: "The request must contain valid credentials.", Status: http.StatusForbidden}
	}
	read, ok := s.api[action]
	if !ok {
		// The same list: InvalidAction.
		return nil, cloud.Refuse("InvalidAction", "The action %s is not valid for this web service.", action)
	}
	if err := s.gate.admit(action, time.Now()); err != nil {
		return nil, err
	}
	if f := s.Cloud.Faults.Take(cloud.APIError, action, volume, instance); f != nil {
		return nil, injectedError(f.Fault)
	}
	q := newQuery(r.Form)
	execute := read(q)
	dryRun := q.boolean("DryRun")
	if err := q.check(); err != nil {
		return nil, err
	}
	if dryRun {
		return nil, dryRunSucceeded()
	}
	asOf := time.Time{}
	if f := s.Cloud.Faults.Take(cloud.Stale, action, volume, instance); f != nil {
		asOf = time.Now().Add(-f.Fault.Delay)
	}
	reply, err := execute(asOf)
	if f := s.Cloud.Faults.Take(cloud.Duplicate, action, volume, instance); f != nil {
		s.Cloud.After(f.Fault.Delay, func() {
			_, err := execute(asOf)
			s.log.Info("duplicate executed", zap.String("action", action), zap.Error(err))
		})
	}
	return reply, err
}

func injectedError(f cloud.Fault) error {
	e := &cloud.Error{Code: f.Code, Message: f.Message, Status: f.Status}
	if e.Status == 0 {
		e.Status = http.StatusBadRequest
	}
	return e
}

// subject finds the volume and the instance a call is about, for the faults.
func subject(r *http.Request) (volume, instance string) {
	form := r.Form
	volume, instance = form.Get("VolumeId"), form.Get("InstanceId")
	if volume == "" {
		volume = form.Get("VolumeId.1")
	}
	if instance == "" {
		instance = form.Get("InstanceId.1")
	}
	return volume, instance
}

// caller finds the instance by the session token that its IMDS gave out.
func caller(r *http.Request) string {
	instance, ok := strings.CutPrefix(r.Header.Get("X-Amz-Security-Token"), sessionToken)
	if !ok {
		return ""
	}
	return instance
}

// pause is the call's latency; false where the caller went away.
func (s *Sim) pause(r *http.Request, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.Context().Done():
		return false
	}
}

func (s *Sim) writeReply(w http.ResponseWriter, action string, reply any) {
	root := xml.StartElement{
		Name: xml.Name{Local: action + "Response"},
		Attr: []xml.Attr{{Name: xml.Name{Local: "xmlns"}, Value: namespace}},
	}
	body := bytes.NewBufferString(xml.Header)
	if err := xml.NewEncoder(body).EncodeElement(reply, root); err != nil {
		s.writeError(w, fmt.Errorf("encode reply: %w", err))
		return
	}
	send(w, http.StatusOK, body)
}

func send(w http.ResponseWriter, status int, body *bytes.Buffer) {
	w.Header().Set("Content-Type", "text/xml;charset=UTF-8")
	w.Header().Set("Content-Length", strconv.Itoa(body.Len()))
	w.WriteHeader(status)
	_, _ = body.WriteTo(w) // a caller that is gone is not our concern
}

// The form of
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html#api-error-response
type errorReply struct {
	XMLName   xml.Name `xml:"Response"`
	Code      string   `xml:"Errors>Error>Code"`
	Message   string   `xml:"Errors>Error>Message"`
	RequestID string   `xml:"RequestID"`
}

func (s *Sim) writeError(w http.ResponseWriter, err error) {
	e, ok := errors.AsType[*cloud.Error](err)
	if !ok {
		s.log.Error("internal error", zap.Error(err))
		e = &cloud.Error{Code: "InternalError", Message: err.Error(), Status: http.StatusInternalServerError}
	}
	body := bytes.NewBufferString(xml.Header)
	_ = xml.NewEncoder(body).Encode(errorReply{Code: e.Code, Message: e.Message, RequestID: rand.Text()}) // of strings
	send(w, e.Status, body)
}
