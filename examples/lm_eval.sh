#!/usr/bin/env bash
# EleutherAI's lm_eval: a task by log-likelihoods (completions, with the model's tokenizer), then one by answers (chat).
#
# pip install 'lm_eval[api]' transformers
# INTERLACE_API_KEY=... INTERLACE_TOKENIZER=HuggingFaceTB/SmolLM2-135M-Instruct examples/lm_eval.sh arc_easy gsm8k
set -euo pipefail
model=${INTERLACE_MODEL:-smollm2-135m-instruct}
url=${INTERLACE_URL:-http://127.0.0.1:8080}/v1
export OPENAI_API_KEY=$INTERLACE_API_KEY

lm_eval run --model local-completions --tasks "$1" --limit 20 --batch_size 4 ${TASKS:+--include_path "$TASKS"} \
  --model_args "model=$model,base_url=$url/completions,tokenizer=$INTERLACE_TOKENIZER,num_concurrent=4"
lm_eval run --model local-chat-completions --tasks "$2" --limit 20 --apply_chat_template ${TASKS:+--include_path "$TASKS"} \
  --model_args "model=$model,base_url=$url/chat/completions,num_concurrent=4"
