# Workload identity: the bytes declared, signed by a named identity, scanned clean, started by the hospital's own launcher.
package rapha

import rego.v1

workload_digest_ok if {
	startswith(input.workload.digest, "sha256:")
	count(input.workload.digest) == 71
	input.workload.found == input.workload.digest
}

deny contains "rego-workload-digest" if not workload_digest_ok

workload_kind_ok if input.workload.kind in ["source", "oci"]

deny contains "rego-workload-kind" if not workload_kind_ok

signature_ok if {
	input.workload.signature_found == input.workload.signature
	input.workload.signature_subject == input.workload.digest
}

deny contains "rego-workload-signature" if not signature_ok

signer_ok if input.workload.signer in input.site.workload_identities

deny contains "rego-workload-signer" if not signer_ok

scan_ok if {
	input.workload.scan.findings == 0
	input.workload.scan.own >= 1
}

deny contains "rego-workload-scan" if not scan_ok

weights_ok if {
	input.workload.weights_found == input.workload.weights
	input.workload.weights_inert == true
}

deny contains "rego-workload-base-weights" if not weights_ok

launcher_ok if {
	startswith(input.workload.launcher, "sha256:")
	input.workload.launcher == input.site.launcher
}

deny contains "rego-workload-launcher" if not launcher_ok
