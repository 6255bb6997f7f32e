# Dataset: the job's intent lies within the signed manifest, which is in force and large enough.
package rapha

import rego.v1

cohort_ok if {
	input.manifest.cohort != ""
	input.manifest.intent.cohort == input.manifest.cohort
}

deny contains "rego-dataset-cohort" if not cohort_ok

project_ok if input.manifest.intent.project in input.manifest.projects

deny contains "rego-dataset-project" if not project_ok

modalities_ok if {
	count(input.manifest.intent.scope.modalities) > 0
	every item in input.manifest.intent.scope.modalities { item in input.manifest.scope.modalities }
}

deny contains "rego-dataset-modality" if not modalities_ok

body_parts_ok if {
	count(input.manifest.intent.scope.body_parts) > 0
	every item in input.manifest.intent.scope.body_parts { item in input.manifest.scope.body_parts }
}

deny contains "rego-dataset-body-part" if not body_parts_ok

dates_ok if {
	input.manifest.scope.date_from <= input.manifest.intent.scope.date_from
	input.manifest.intent.scope.date_from <= input.manifest.intent.scope.date_to
	input.manifest.intent.scope.date_to <= input.manifest.scope.date_to
}

deny contains "rego-dataset-dates" if not dates_ok

in_force if {
	input.manifest.issued_at <= input.binding.at
	input.binding.at + input.manifest.intent.max_seconds < input.manifest.expires_at
}

deny contains "rego-dataset-manifest-expired" if not in_force

approved if {
	input.manifest.roles == ["caldicott", "custodian", "dpo"]
}

deny contains "rego-dataset-not-approved" if not approved

records_ok if {
	input.manifest.root != ""
	input.manifest.records_root == input.manifest.root
}

deny contains "rego-dataset-records-differ" if not records_ok

large_enough if {
	input.manifest.patients >= input.manifest.min_patients
	input.manifest.patients >= input.site.min_patients
	input.site.min_patients >= 8
}

deny contains "rego-dataset-too-small" if not large_enough

records_few_enough if {
	input.manifest.intent.max_records >= 1
	input.manifest.intent.max_records <= input.manifest.max_records
	input.manifest.intent.max_records <= input.site.max_records
}

deny contains "rego-dataset-too-many-records" if not records_few_enough
