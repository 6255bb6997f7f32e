# Network: the sandbox has none, the outside line is cut while clear data exist, and the scan saw no code that wants one.
package rapha

import rego.v1

sandbox_ok if input.network.sandbox == "none"

deny contains "rego-network-sandbox" if not sandbox_ok

outside_ok if input.network.outside == "cut"

deny contains "rego-network-outside-line" if not outside_ok

code_ok if input.workload.scan.network == 0

deny contains "rego-network-capable-code" if not code_ok
