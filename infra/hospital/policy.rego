# The embedded hospital's own policy (RAPHA_OPA_POLICY_PATH): it may narrow the node's, never widen it. Both must allow.
package hospital

import rego.v1

default allow := false

allow if {
	input.manifest.intent.purpose == "diagnostic-model-research"
	input.manifest.intent.max_records <= 10000
}
