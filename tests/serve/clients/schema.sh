#!/bin/sh
# Asks a running server what its /openapi.json allows and forbids, for about a minute:
#
#     sh schema.sh BASE_URL
#
# PYTHONPATH holds the packages of requirements.txt. The generator is seeded: the same requests each time. Exit code 1 with the request
# to repeat, if the server answers with a 5xx, a status or a body that its description does not have, or takes what it forbids.
set -eu
base=${1:?"usage: sh schema.sh BASE_URL"}
exec timeout 180 python3 -m schemathesis.cli run "$base/openapi.json" --url "$base" \
    --checks not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,negative_data_rejection \
    --phases examples,coverage,fuzzing --max-examples 20 --seed 1 --request-timeout 60 --max-failures 20
