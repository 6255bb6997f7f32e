# The decision. Every rule below this package is written as what must hold; a rule whose path is absent does not hold, so an empty
# input is denied by all of them.
package rapha

import rego.v1

default allow := false

allow if {
	count(deny) == 0
	count(missing) == 0
	bound
}

reasons := sort([code | some code in deny])

required := [
	["binding", "job"], ["binding", "attempt"], ["binding", "nonce"], ["binding", "at"], ["binding", "expires"],
	["manifest", "job"], ["manifest", "cohort"], ["manifest", "intent"], ["manifest", "scope"], ["manifest", "expires_at"],
	["workload", "job"], ["workload", "digest"], ["workload", "signer"], ["workload", "scan"],
	["network", "sandbox"], ["network", "outside"], ["site", "purposes"], ["site", "consent_bases"],
]

missing contains path[1] if {
	some path in required
	not present(path)
}

present(path) if input[path[0]][path[1]] != null

deny contains "rego-input-missing" if count(missing) > 0

# The facts are of this job, this attempt and this nonce, and the decision ends before they do.
bound if {
	input.binding.job != ""
	input.binding.nonce != ""
	input.binding.attempt >= 1
	input.binding.at < input.binding.expires
	input.manifest.job == input.binding.job
	input.manifest.attempt == input.binding.attempt
	input.manifest.nonce == input.binding.nonce
	input.workload.job == input.binding.job
	input.workload.attempt == input.binding.attempt
	input.workload.nonce == input.binding.nonce
}

deny contains "rego-binding" if not bound
