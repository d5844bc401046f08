#!/bin/sh
# Looks for known vulnerabilities that our code calls: make vuln. Fails if there is one, or if it cannot be looked for. Where the database
# of vulnerabilities cannot be reached it says so, and that nothing was checked, and does not fail: a machine without a network can pass
# make ci. VULNDB=url (file:// as well) is another database.
set -u
output=$(mktemp)
trap 'rm -f "$output"' EXIT

${GOVULNCHECK:-go tool -modfile=tools/govulncheck/go.mod govulncheck} ${VULNDB:+-db "$VULNDB"} ./... >"$output" 2>&1
status=$?
cat "$output"
case $status in
0)
	exit 0
	;;
3)
	echo "make vuln: our code calls what is known to be vulnerable: update the modules named above, and Go for what is in its standard library" >&2
	exit 1
	;;
esac
if grep -q '^govulncheck: fetching vulnerabilities: ' "$output"; then
	echo "make vuln: NOT CHECKED: the database of vulnerabilities cannot be reached (see above); VULNDB=url gives another" >&2
	exit 0
fi
echo "make vuln: govulncheck failed (exit status $status)" >&2
exit 1
