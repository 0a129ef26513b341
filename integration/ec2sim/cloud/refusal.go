package cloud

import (
	"fmt"
	"net/http"
	"strings"
)

// An Error is a refusal in EC2's words: the code that programs match, the
// message people read, and the HTTP status it comes with.
//
// The codes are those of
// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
// (called "the list" below); where a public report shows the message as EC2
// wrote it, it is cited and repeated.
type Error struct {
	Code    string
	Message string
	Status  int
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// Refuse makes a refusal with status 400, as nearly all are: "errors are
// accompanied by a 400-series HTTP response code" (the list).
func Refuse(code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...), Status: http.StatusBadRequest}
}

// Ids.

// https://github.com/cloudavail/aws-missing-tools/issues/59
func notAVolumeID(id string) error {
	return Refuse("InvalidParameterValue", "Value (%s) for parameter volumeId is invalid. Expected: 'vol-...'.", id)
}

// The list: InvalidVolumeID.Malformed; the message as in cloud-custodian's
// tests (https://github.com/cloud-custodian/cloud-custodian).
func malformedVolumeID(id string) error {
	return Refuse("InvalidVolumeID.Malformed", "Invalid id: %q", id)
}

// https://github.com/hashicorp/terraform-provider-aws/issues/12521
func malformedInstanceID(id string) error {
	return Refuse("InvalidInstanceID.Malformed", "Invalid id: %q", id)
}

// https://github.com/kubernetes-sigs/aws-ebs-csi-driver/issues/1343; that one
// missing id fails the whole batch:
// https://github.com/kubernetes-sigs/aws-ebs-csi-driver/issues/2817
func noVolumes(ids ...string) error {
	if len(ids) == 1 {
		return Refuse("InvalidVolume.NotFound", "The volume '%s' does not exist.", ids[0])
	}
	return Refuse("InvalidVolume.NotFound", "The volumes '%s' do not exist.", strings.Join(ids, ", "))
}

// The list: InvalidInstanceID.NotFound, with this message in its example; "the
// ID of a recently created instance" may not have "propagated" yet.
func noInstances(ids ...string) error {
	if len(ids) == 1 {
		return Refuse("InvalidInstanceID.NotFound", "The instance ID '%s' does not exist", ids[0])
	}
	return Refuse("InvalidInstanceID.NotFound", "The instance IDs '%s' do not exist", strings.Join(ids, ", "))
}

// The list: InvalidID, the resource that was to be tagged.
func invalidID(id string) error {
	return Refuse("InvalidID", "The ID '%s' is not valid", id)
}

// AttachVolume.

// https://github.com/linuxkit/linuxkit/issues/2388
func zoneMismatch(volume, instance string) error {
	return Refuse("InvalidVolume.ZoneMismatch", "The volume '%s' is not in the same availability zone as instance '%s'", volume, instance)
}

// https://github.com/ansible-collections/amazon.aws/pull/497
func notRunning(instance string) error {
	return Refuse("IncorrectState", "Instance '%s' is not 'running'.", instance)
}

// https://github.com/jsmartin/raidformer/pull/5
func notAvailable(volume string) error {
	return Refuse("IncorrectState", "%s is not 'available'.", volume)
}

// https://github.com/portworx/px-dev/issues/42
func alreadyAttached(volume string) error {
	return Refuse("VolumeInUse", "%s is already attached to an instance", volume)
}

// https://github.com/ansible-collections/amazon.aws/pull/1558 and
// https://github.com/hashicorp/terraform-provider-aws/issues/17547
func attachWhileModifying(volume string) error {
	return Refuse("OperationNotPermitted", "Cannot attach volume %s when it is in modification state: MODIFYING", volume)
}

// https://github.com/kubernetes-sigs/aws-ebs-csi-driver/pull/2500
func tooManyAttachments(limit int) error {
	return Refuse("AttachmentLimitExceeded", "You may attach up to %d devices for this instance type. Please use a larger instance size to attach more volumes.", limit)
}

// https://github.com/base2genomics/batchit/issues/15
func badDeviceName(device string) error {
	return Refuse("InvalidParameterValue", "Value (%[1]s) for parameter device is invalid. %[1]s is not a valid EBS device name.", device)
}

// The list: InvalidParameterValue, "already in use on the instance";
// https://github.com/rexray/rexray/issues/425 and
// https://github.com/nanovms/ops/pull/1189
func deviceNameInUse(device string) error {
	return Refuse("InvalidParameterValue", "Invalid value '%[1]s' for unixDevice. Attachment point %[1]s is already in use", device)
}

// https://docs.aws.amazon.com/ebs/latest/userguide/ebs-volumes-multi.html: up
// to 16 instances.
func tooManyHolders(volume string) error {
	return Refuse("AttachmentLimitExceeded", "%s is attached to 16 instances, the most a Multi-Attach enabled volume can have", volume)
}

// DetachVolume.

// https://github.com/kubernetes-sigs/aws-ebs-csi-driver/issues/1801
func detachAvailable(volume string) error {
	return Refuse("IncorrectState", "Volume '%s' is in the 'available' state.", volume)
}

// The list: InvalidAttachment.NotFound, an attempt to detach a volume from an
// instance to which it is not attached.
func notAttachedTo(volume, instance string) error {
	return Refuse("InvalidAttachment.NotFound", "The volume '%s' is not attached to instance '%s'", volume, instance)
}

// The same code for a device name that is not the attachment's.
func notAttachedAs(volume, device string) error {
	return Refuse("InvalidAttachment.NotFound", "The volume '%s' is not attached as device '%s'", volume, device)
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DetachVolume.html:
// "If you are detaching a Multi-Attach enabled volume, you must specify an
// instance ID."
func detachNeedsInstance() error {
	return Refuse("MissingParameter", "The request must contain the parameter instanceId")
}

// https://github.com/hashicorp/terraform/issues/18965: the instance was being
// shut down.
func detachFromEndingInstance(volume, instance string) error {
	return Refuse("IncorrectInstanceState", "Unable to detach volume '%s' from instance '%s'. The instance is not in a state in which volumes can be detached.", volume, instance)
}

// CreateVolume and DeleteVolume.

// The list: InvalidZone.NotFound.
func noZone(zone string) error {
	return Refuse("InvalidZone.NotFound", "The zone '%s' does not exist.", zone)
}

// The list: UnknownVolumeType.
func unknownVolumeType(kind string) error {
	return Refuse("UnknownVolumeType", "Unsupported volume type '%s' for volume creation.", kind)
}

// https://github.com/sodafoundation/strato/issues/1116
func volumeTooSmall(kind string, gib int) error {
	return Refuse("InvalidParameterValue", "The volume size is invalid for %[1]s volumes: %[2]d GiB. %[1]s volumes must be at least 1 GiB in size. Please specify a volume size above the minimum limit.", kind, gib)
}

// https://github.com/runs-on/runs-on/issues/426
func throughputNeedsGP3() error {
	return Refuse("InvalidParameterCombination", "throughput can only be specified for volumeType gp3.")
}

// https://github.com/hashicorp/packer/pull/2201
func iopsNotSupported(kind string) error {
	return Refuse("InvalidParameterCombination", "The parameter iops is not supported for %s volumes.", kind)
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateVolume.html:
// iops "is required for io1 and io2 volumes".
func iopsMissing(kind string) error {
	return Refuse("MissingParameter", "The parameter iops must be specified for %s volumes.", kind)
}

// https://docs.aws.amazon.com/ebs/latest/userguide/ebs-volumes-multi.html:
// only provisioned IOPS volumes can be enabled for Multi-Attach.
func multiAttachNeedsIOPS(kind string) error {
	return Refuse("InvalidParameterCombination", "Multi-Attach is not supported for %s volumes.", kind)
}

// The list: VolumeInUse, "Ensure that the specified volume is in an
// 'available' state"; https://github.com/getmoto/moto/pull/1296.
func deleteAttached(volume, instance string) error {
	return Refuse("VolumeInUse", "Volume %s is currently attached to %s", volume, instance)
}

// The list: IdempotentParameterMismatch.
func tokenReused(token string) error {
	return Refuse("IdempotentParameterMismatch", "The client token '%s' was used before with other parameters", token)
}

// ModifyVolume.

// https://github.com/kubernetes/kubernetes/issues/69434
func modifyWhileModifying(volume, state string) error {
	return Refuse("IncorrectModificationState", "Volume %s cannot be modified in modification state %s", volume, strings.ToUpper(state))
}

// https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_ModifyVolume.html:
// "The target size of the volume must be greater than or equal to the existing
// size."
func shrinking(from, to int) error {
	return Refuse("InvalidParameterValue", "New size cannot be smaller than existing size (%d GiB, asked %d GiB)", from, to)
}

// A volume that was never modified, asked for by its id; the EBS CSI driver
// knows it as "InvalidVolumeModification.NotFound" (pkg/cloud/cloud.go of
// https://github.com/kubernetes-sigs/aws-ebs-csi-driver).
func noModification(volume string) error {
	return Refuse("InvalidVolumeModification.NotFound", "Modification for volume '%s' does not exist.", volume)
}

// Instances.

// https://github.com/cloud-custodian/cloud-custodian/pull/6014
func stopBeforeRunning(instance string) error {
	return Refuse("IncorrectInstanceState", "Instance '%s' cannot be stopped as it has never reached the 'running' state.", instance)
}

// The list: IncorrectInstanceState.
func cannotStop(instance string) error {
	return Refuse("IncorrectInstanceState", "This instance '%s' is not in a state from which it can be stopped.", instance)
}

// https://github.com/burstable-ai/burst/issues/42
func cannotStart(instance string) error {
	return Refuse("IncorrectInstanceState", "The instance '%s' is not in a state from which it can be started.", instance)
}

// Describe.

// https://github.com/aws/aws-cli/issues/2516
func unknownFilter(name string) error {
	return Refuse("InvalidParameterValue", "The filter '%s' is invalid", name)
}

// The list: FilterLimitExceeded.
func tooManyFilterValues() error {
	return Refuse("FilterLimitExceeded", "The maximum number of filter values is 200")
}

// https://github.com/aws/aws-cli/issues/1976
func pagedIDs(set string) error {
	return Refuse("InvalidParameterCombination", "The parameter %s cannot be used with the parameter maxResults", set)
}

// https://github.com/aws/aws-sdk-ruby/pull/2575
func pageTooSmall(n int) error {
	return Refuse("InvalidParameterValue", "Value ( %d ) for parameter maxResults is invalid. Expecting a value greater than 5.", n)
}

// The list: InvalidPaginationToken.
func badPageToken() error {
	return Refuse("InvalidPaginationToken", "The pagination token is not valid")
}

// Tags.

// The list: TagLimitExceeded. 50 tags a resource, and the aws: prefix is AWS's
// own: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html
func tooManyTags() error {
	return Refuse("TagLimitExceeded", "The maximum number of Tags for a resource has been reached.")
}

func reservedTag() error {
	return Refuse("InvalidParameterValue", "Tag keys starting with 'aws:' are reserved for internal use")
}
