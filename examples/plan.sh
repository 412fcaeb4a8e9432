#!/bin/sh
# Encode two frames, then plan between them by their ids: `plan.sh [SERVER]`.
# With a key: LEWM_KEY=… plan.sh https://planner.example:8000
set -eu
server=${1:-http://127.0.0.1:8000}
frames=$(dirname "$0")/../docs/frames

post() { # PATH DOCUMENT
    curl --fail-with-body --silent --show-error "$server$1" \
        --header 'Content-Type: application/json' \
        ${LEWM_KEY:+--header "Authorization: Bearer $LEWM_KEY"} --data-binary "$2"
}

frame() { # FILE
    printf '{"image": "%s"}' "$(base64 -w0 "$1")"
}

encoded=$(post /encode "{\"frames\": [$(frame "$frames/start.png"), $(frame "$frames/goal.png")]}")
# The ids of both latents, in the order of the frames.
ids=$(printf '%s' "$encoded" | grep -o '"latent_id":"[^"]*"' | cut -d '"' -f 4)
start=$(printf '%s\n' "$ids" | sed -n 1p)
goal=$(printf '%s\n' "$ids" | sed -n 2p)
post /plan "{\"frames\": [{\"latent_id\": \"$start\"}], \"goal\": {\"latent_id\": \"$goal\"}, \"seed\": 7}"
echo
