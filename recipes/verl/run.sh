#!/usr/bin/env bash
# GRPO with DMMPTs and POIS in verl 0.9 on one node of 8 GPUs. Arguments are further overrides: bash run.sh trainer.nnodes=2
# The environment variables TRAIN_FILES and VAL_FILES are the data; MODEL is the model.
# verl and its configuration read this on a CPU; a training with it has never run, because there was no GPU.
set -euo pipefail

export VERL_USE_EXTERNAL_MODULES=ulorl.adapters.verl_plugin # in each of its processes, verl uses UloRL's loss

python -m verl.trainer.main_ppo --config-path="$(cd "$(dirname "$0")" && pwd)" --config-name=dmmpts \
    trainer.v1.trainer_mode=colocate_async \
    data.train_files="${TRAIN_FILES:?set it to the parquet file of the training problems}" \
    data.val_files="${VAL_FILES:?set it to the parquet file of the problems for evaluation}" \
    data.train_batch_size=128 \
    data.max_prompt_length=2048 \
    data.max_response_length=32768 \
    actor_rollout_ref.model.path="${MODEL:-Qwen/Qwen3-4B}" \
    actor_rollout_ref.model.use_remove_padding=true \
    actor_rollout_ref.model.enable_gradient_checkpointing=true \
    actor_rollout_ref.actor.strategy=fsdp2 \
    actor_rollout_ref.actor.optim.lr=1e-6 \
    actor_rollout_ref.actor.ppo_mini_batch_size=128 \
    actor_rollout_ref.actor.use_dynamic_bsz=true \
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=36864 \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=8 \
    actor_rollout_ref.rollout.calculate_log_probs=true \
    actor_rollout_ref.rollout.gpu_memory_utilization=0.7 \
    actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=true \
    actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=36864 \
    trainer.n_gpus_per_node=8 \
    trainer.nnodes=1 \
    "$@"
