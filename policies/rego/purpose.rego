# Purpose and consent: named by the manifest and by the site, and opt-outs applied lately.
package rapha

import rego.v1

purpose_in_manifest if input.manifest.intent.purpose in input.manifest.purposes

deny contains "rego-purpose-not-in-manifest" if not purpose_in_manifest

purpose_known if input.manifest.intent.purpose in input.site.purposes

deny contains "rego-purpose-unknown-here" if not purpose_known

consent_ok if input.manifest.consent_basis in input.site.consent_bases

deny contains "rego-consent-basis" if not consent_ok

opt_outs_ok if {
	input.manifest.opt_outs_applied_at <= input.binding.at
	input.binding.at - input.manifest.opt_outs_applied_at <= input.site.max_opt_out_age
}

deny contains "rego-consent-opt-outs-stale" if not opt_outs_ok
