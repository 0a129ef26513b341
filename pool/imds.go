package pool

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
)

// Identity is who an instance is.
type Identity struct{ Instance, Zone, Region string }

type imdsAPI interface {
	GetInstanceIdentityDocument(context.Context, *imds.GetInstanceIdentityDocumentInput, ...func(*imds.Options)) (*imds.GetInstanceIdentityDocumentOutput, error)
}

// imdsPatience bounds the metadata service, which answers within milliseconds
// where there is one.
const imdsPatience = 10 * time.Second

// Identify asks the instance metadata service, version 2, who this is.
func Identify(ctx context.Context, api imdsAPI) (Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, imdsPatience)
	defer cancel()
	out, err := api.GetInstanceIdentityDocument(ctx, nil)
	if err != nil {
		return Identity{}, fmt.Errorf("ask the instance metadata service who this is: %w", rootCause(err))
	}
	id := Identity{out.InstanceID, out.AvailabilityZone, out.Region}
	if id.Instance == "" || id.Zone == "" {
		return Identity{}, errors.New("ask the instance metadata service who this is: its identity document names no instance or no zone")
	}
	return id, nil
}

// rootCause spares the reader the SDK's chain of wrappers.
func rootCause(err error) error {
	if sent, ok := errors.AsType[*url.Error](err); ok {
		return sent.Err
	}
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}
