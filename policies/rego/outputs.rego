# Output limits: what the job declares that may leave.
package rapha

import rego.v1

output_bytes_ok if {
	input.manifest.intent.output_bytes > 0
	input.manifest.intent.output_bytes <= input.manifest.max_output_bytes
	input.manifest.intent.output_bytes <= input.site.max_output_bytes
}

deny contains "rego-output-too-large" if not output_bytes_ok

metrics_ok if {
	input.manifest.intent.metrics >= 0
	input.manifest.intent.metrics <= input.manifest.max_metrics
	input.manifest.intent.metrics <= input.site.max_metrics
}

deny contains "rego-output-too-many-metrics" if not metrics_ok
