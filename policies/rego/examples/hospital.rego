# A hospital's own policy (RAPHA_OPA_POLICY_PATH): it may narrow the node's, never widen it. Both must allow.
# The package must be `hospital`; `allow` must be exactly true; the input is the one that docs and policies/rego describe.
package hospital

import rego.v1

default allow := false

allow if {
	input.manifest.intent.purpose in {"research", "quality-improvement", "model-training"}
	input.manifest.intent.max_records <= 1000000
}
