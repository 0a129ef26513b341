package ec2sim

import "time"

// The paths that announce an end; each answers 404 until there is something to
// say.
const (
	spotPath        = "meta-data/spot/instance-action"
	rebalancePath   = "meta-data/events/recommendations/rebalance"
	lifecyclePath   = "meta-data/autoscaling/target-lifecycle-state"
	maintenancePath = "meta-data/events/maintenance/scheduled"
)

// InterruptSpot announces that the spot instance ends; EC2 does so two minutes
// before
// (https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html).
func (m *Metadata) InterruptSpot(action string, at time.Time) {
	m.Set(spotPath, encode(map[string]any{"action": action, "time": at.UTC().Format(time.RFC3339)}))
}

// RecommendRebalance says that the spot instance is at risk
// (https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/rebalance-recommendations.html).
func (m *Metadata) RecommendRebalance(at time.Time) {
	m.Set(rebalancePath, encode(map[string]any{"noticeTime": at.UTC().Format(time.RFC3339)}))
}

// TargetLifecycleState is where the autoscaling group wants the instance:
// InService, Terminated, Warmed:Stopped and so on
// (https://docs.aws.amazon.com/autoscaling/ec2/userguide/retrieving-target-lifecycle-state-through-imds.html).
func (m *Metadata) TargetLifecycleState(state string) {
	m.Set(lifecyclePath, state)
}

// ScheduleMaintenance announces an event, as instance-stop or instance-retirement
// (https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/viewing_scheduled_events.html).
func (m *Metadata) ScheduleMaintenance(code string, notBefore time.Time) {
	const form = "2 Jan 2006 15:04:05 GMT"
	m.Set(maintenancePath, encode([]map[string]any{{
		"NotBefore": notBefore.UTC().Format(form), "NotAfter": notBefore.UTC().Add(2 * time.Hour).Format(form),
		"Code": code, "Description": "The instance is scheduled for " + code, "EventId": "instance-event-" + m.instance.ID[2:], "State": "active",
	}}))
}
