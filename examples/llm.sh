#!/usr/bin/env bash
# simonw's `llm` at the command line.
#
# pip install llm
# INTERLACE_API_KEY=... examples/llm.sh
set -euo pipefail
export LLM_USER_PATH=${LLM_USER_PATH:-$(mktemp -d)} # left out: your own ~/.config/io.datasette.llm

cat > "$LLM_USER_PATH/extra-openai-models.yaml" <<END
- model_id: interlace
  model_name: ${INTERLACE_MODEL:-smollm2-135m-instruct}
  api_base: ${INTERLACE_URL:-http://127.0.0.1:8080}/v1
  api_key_name: interlace
  supports_schema: true
  supports_tools: true
END
llm keys set interlace --value "$INTERLACE_API_KEY"

llm -m interlace -o temperature 0 -o max_tokens 32 'What is the capital of France?'
llm -m interlace -o temperature 0 -o max_tokens 64 --schema 'name, country' 'Describe the city of Paris.'
