"""What is known of the engines' flags, by name in snake_case: vLLM 0.32's own parser and `transformers serve` 5.19.

Only for reading command lines and for suggestions: an argument that is not listed here is passed through as given.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


VLLM_SWITCHES = _words(
    """
    aggregate_engine_logging allow_credentials allow_deprecated_quantization async_scheduling
    cohere_is_reasoning_model cudagraph_metrics data_parallel_external_lb data_parallel_hybrid_lb
    data_parallel_multi_port_external_lb dcp_q_replicate disable_cascade_attn disable_chunked_mm_input
    disable_custom_all_reduce disable_fastapi_docs disable_hybrid_kv_cache_manager disable_log_stats
    disable_nccl_for_dp_synchronization disable_sliding_window disable_uvicorn_access_log enable_auto_tool_choice
    enable_batch_sharded_sampling enable_chunked_prefill enable_cumem_allocator enable_dbo enable_elastic_ep
    enable_ep_weight_filter enable_eplb enable_expert_parallel enable_fault_tolerance enable_flash_late_interaction
    enable_flashinfer_autotune enable_force_include_usage enable_hc_sp enable_layerwise_nvtx_tracing
    enable_log_deltas enable_log_outputs enable_log_requests enable_logging_iteration_details enable_lora
    enable_mamba_cache_stochastic_rounding enable_mamba_shared_prefix_checkpoint enable_mfu_metrics
    enable_mixed_moe_lora_format enable_mm_embeds enable_moe_shared_loras enable_nccl_comm_suspend
    enable_offline_docs enable_per_request_metrics enable_prefix_caching enable_prompt_embeds
    enable_prompt_tokens_details enable_request_id_headers enable_return_routed_experts enable_scale_out
    enable_server_load_tracking enable_shm_tensor_arena enable_sleep_mode enable_ssl_refresh
    enable_tokenizer_info_endpoint enable_tower_connector_lora enable_trace_replay enforce_eager
    exclude_tools_when_tool_choice_none fail_on_environ_validation fully_sharded_loras grpc headless
    interleave_mm_strings jit_monitor_verbose kv_cache_metrics kv_sharing_fast_prefill language_model_only
    log_error_stack long_prefill_token_threshold_adaptive mm_device_do_normalize mm_encoder_only numa_bind
    ray_workers_use_nsight return_sampling_mask return_tokens_as_token_ids scheduler_reserve_full_isl
    skip_mm_profiling skip_tokenizer_init sleep_mode_offload_cudagraph specialize_active_lora swa_bounded_replay
    tokens_only trust_remote_code trust_request_chat_template trust_request_mm_kwargs use_fp64_gumbel use_replayssm
    use_tqdm_on_load
    """
)
"""Take no value; `--no-NAME` is their opposite, except for STORE_TRUE."""

VLLM_REPEATED = _words(
    """
    allowed_media_domains api_key collect_detailed_traces cpu_offload_params cudagraph_capture_sizes ignore_patterns
    kv_cache_dtype_skip_layers logits_processors lora_modules lora_target_modules numa_bind_cpus numa_bind_nodes
    offload_params served_model_name sleep_preserve_parameter_names
    """
)
"""Take one or more values after one flag."""

VLLM_VALUED = _words(
    """
    additional_config all2all_backend allowed_headers allowed_local_media_path allowed_methods allowed_origins
    anthropic_disabled_thinking_effort api_server_count attention_backend attention_config aux_output_config
    block_size chat_template chat_template_content_format code_revision cohere_format compilation_config config
    config_format convert cp_kv_cache_interleave_size cpu_distributed_timeout_seconds cpu_offload_gb
    custom_histogram_buckets data_parallel_address data_parallel_backend data_parallel_rank data_parallel_rpc_port
    data_parallel_size data_parallel_size_local data_parallel_start_rank data_parallel_supervisor_port
    dbo_decode_token_threshold dbo_prefill_token_threshold dcp_comm_backend dcp_kv_cache_interleave_size
    decode_context_parallel_size default_chat_template_kwargs default_mm_loras device_ids diffusion_config
    disable_access_log_for_endpoints distributed_executor_backend distributed_timeout_seconds download_dir
    dp_supervisor_probe_failure_threshold dp_supervisor_probe_interval_s dp_supervisor_probe_timeout_s
    dp_sync_interval dtype ec_manager_config ec_transfer_config elastic_ep_max_dp_size engram_config eplb_config
    expert_placement_strategy fault_tolerance_config fingerprint_mode fingerprint_value gdn_prefill_backend
    generation_config gpu_memory_utilization grpc_port h11_max_header_count h11_max_incomplete_event_size
    hf_config_path hf_overrides hf_token host io_processor_plugin ir_op_priority jit_monitor_mode kda_decode_backend
    kda_prefill_backend kernel_config kv_cache_dtype kv_cache_memory_bytes kv_cache_metrics_sample kv_events_config
    kv_offloading_backend kv_offloading_size kv_transfer_config limit_mm_per_prompt linear_backend load_format
    log_config_file log_level logging_config logprobs_mode long_prefill_token_threshold lora_dtype mamba_backend
    mamba_block_size mamba_cache_dtype mamba_cache_mode mamba_cache_philox_rounds mamba_ssm_cache_dtype
    mamba_ssu_algorithm master_addr master_port max_cpu_loras max_cudagraph_capture_size max_log_len max_logprobs
    max_lora_cls_labels max_lora_rank max_loras max_model_len max_num_active_seqs max_num_batched_tokens
    max_num_queued_reqs max_num_queued_tokens max_num_scheduled_tokens max_num_seqs max_parallel_loading_workers
    media_io_kwargs middleware mm_encoder_attn_backend mm_encoder_attn_dtype mm_encoder_fp8_scale_path
    mm_encoder_fp8_scale_save_margin mm_encoder_fp8_scale_save_path mm_encoder_tp_mode mm_hasher_algorithm
    mm_ipc_gpu_memory_gb mm_processor_cache_gb mm_processor_cache_type mm_processor_device mm_processor_kwargs
    mm_shm_cache_max_object_size_mb mm_tensor_ipc model model_class_overrides model_impl model_loader_extra_config
    moe_backend nnodes node_rank num_gpu_blocks_override offload_backend offload_group_size offload_num_in_group
    offload_prefetch_step optimization_level otlp_traces_endpoint override_generation_config
    per_request_spec_decode_metrics performance_mode pipeline_parallel_size pooler_config port
    prefill_context_parallel_size prefill_schedule_interval prefix_cache_retention_interval prefix_caching_hash_algo
    prefix_match_unit profiler_config pt_load_map_location quantization quantization_config reasoning_config
    reasoning_parser reasoning_parser_plugin renderer_num_workers replayssm_buffer_len response_role revision
    root_path runner safetensors_load_strategy safetensors_prefetch_block_size safetensors_prefetch_num_threads
    scheduler_cls scheduling_policy seed show_hidden_metrics_for_version shutdown_timeout
    sparse_indexer_topk_backend spec_method spec_model spec_tokens speculative_config sse_keep_alive_interval
    ssl_ca_certs ssl_cert_reqs ssl_certfile ssl_ciphers ssl_keyfile stream_interval structured_outputs_config
    tensor_parallel_size tokenizer tokenizer_mode tokenizer_revision tool_call_parser tool_parser_plugin tool_server
    tool_strict_level ubatch_size uds uvicorn_log_level video_pruning_method video_pruning_rate watermark
    watermark_config weight_transfer_config worker_cls worker_extension_cls
    """
)
"""Take one value."""

STORE_TRUE = frozenset(
    ("aggregate_engine_logging", "data_parallel_multi_port_external_lb", "disable_log_stats", "grpc", "headless")
)
"""Switches without an opposite: false leaves them out."""

APPENDED = frozenset(("middleware",))
"""Given once for each value."""

JSON_LISTS = frozenset(("allowed_origins", "allowed_methods", "allowed_headers"))
"""Take one value that is a JSON list."""

FLOATS = frozenset(("cpu_offload_gb", "gpu_memory_utilization", "kv_offloading_size", "swap_space", "watermark"))
"""Take a number: 0.90 is 0.9, which of a revision could not be said."""

TRANSFORMERS_SWITCHES = frozenset(
    ("continuous_batching", "compile", "trust_remote_code", "cb_use_cuda_graph", "enable_cors")
)
"""Take no value; `--no-NAME` is their opposite."""

TRANSFORMERS_VALUED = _words(
    """
    attn_implementation quantization reasoning chat_template_kwargs device dtype model_timeout cb_block_size
    cb_num_blocks cb_max_batch_tokens cb_max_memory_percent log_level default_seed
    """
)
"""Take one value."""

SHORT = {
    "-asc": "api_server_count",
    "-q": "quantization",
    "-pp": "pipeline_parallel_size",
    "-n": "nnodes",
    "-r": "node_rank",
    "-tp": "tensor_parallel_size",
    "-dcp": "decode_context_parallel_size",
    "-pcp": "prefill_context_parallel_size",
    "-dp": "data_parallel_size",
    "-dpn": "data_parallel_rank",
    "-dpr": "data_parallel_start_rank",
    "-dpl": "data_parallel_size_local",
    "-dpa": "data_parallel_address",
    "-dpp": "data_parallel_rpc_port",
    "-dpb": "data_parallel_backend",
    "-dph": "data_parallel_hybrid_lb",
    "-dpe": "data_parallel_external_lb",
    "-dpm": "data_parallel_multi_port_external_lb",
    "-ep": "enable_expert_parallel",
    "-sc": "speculative_config",
    "-dc": "diffusion_config",
    "-cc": "compilation_config",
    "-ac": "attention_config",
}
"""vLLM's short flags."""

RENAMED = {
    "max_model_length": "max_model_len",
    "max_length": "max_model_len",
    "max_seq_len": "max_model_len",
    "max_seq_length": "max_model_len",
    "context_length": "max_model_len",
    "tensor_parallel": "tensor_parallel_size",
    "tp": "tensor_parallel_size",
    "tp_size": "tensor_parallel_size",
    "num_gpus": "tensor_parallel_size",
    "pipeline_parallel": "pipeline_parallel_size",
    "pp": "pipeline_parallel_size",
    "data_parallel": "data_parallel_size",
    "dp": "data_parallel_size",
    "gpu_memory_utilisation": "gpu_memory_utilization",
    "gpu_utilization": "gpu_memory_utilization",
    "gpu_mem_utilization": "gpu_memory_utilization",
    "mem_fraction": "gpu_memory_utilization",
    "max_num_seq": "max_num_seqs",
    "max_batch_size": "max_num_seqs",
    "max_concurrency": "max_num_seqs",
    "enable_prefix_cache": "enable_prefix_caching",
    "eager": "enforce_eager",
    "lora": "enable_lora",
    "cpu_offload": "cpu_offload_gb",
    "quant": "quantization",
}
"""What people write, and what vLLM calls it."""

GONE = {
    "swap_space": "newer vLLM has it no more: use cpu_offload_gb (weights) or kv_offloading_size (KV cache)",
    "disable_log_requests": "newer vLLM has it no more: requests are not logged unless enable_log_requests is set",
    "use_v2_block_manager": "newer vLLM has it no more: delete it",
    "num_scheduler_steps": "newer vLLM has it no more: delete it",
    "worker_use_ray": 'newer vLLM has it no more: use distributed_executor_backend = "ray"',
    "enable_reasoning": "newer vLLM has it no more: reasoning_parser alone is enough",
    "guided_decoding_backend": "newer vLLM has it no more: use structured_outputs_config = { backend = … }",
    "rope_scaling": "newer vLLM has it no more: use hf_overrides = { rope_parameters = { … } }",
    "rope_theta": "newer vLLM has it no more: use hf_overrides = { rope_parameters = { rope_theta = … } }",
    "task": 'newer vLLM has it no more: use runner = "pooling" for embedding models',
    "disable_frontend_multiprocessing": "newer vLLM has it no more: delete it",
}
"""Arguments that vLLM dropped, and what came instead."""

GONE_SWITCHES = _words(
    """
    disable_async_output_proc disable_frontend_multiprocessing disable_log_requests enable_prompt_adapter
    enable_reasoning multi_step_stream_outputs use_v2_block_manager worker_use_ray
    """
)
"""Those among what vLLM dropped that took no value."""

OWNED_ARGS = {
    "host": "use the profile's own key: host",
    "port": "use the profile's own key: port",
    "model": "use the profile's own key: model",
    "model_tag": "use the profile's own key: model",
    "force_model": "use the profile's own key: model",
    "served_model_name": "use the profile's own key: served_name",
    "served_name": "it is a key of the profile, not of [args]",
    "gpus": "it is a key of the profile, not of [args]; at launch say --gpus 6,7",
    "hub_endpoint": "it is a key of the profile, not of [args]",
    "drain_s": "it is a key of the profile, not of [args]",
    "start_timeout_s": "it is a key of the profile, not of [args]",
    "api_key": 'say where the key is: [secrets] api_key = "env:NAME"',
    "hf_token": 'say where the token is: [secrets] hf_token = "env:HF_TOKEN"',
    "uds": "delete it: gpubox chooses the sockets of its engines itself",
    "enable_sleep_mode": "use the profile's own key: sleep = true",
    "sleep": "it is a key of the profile, not of [args]",
    "ttl": "it is a key of the profile, not of [args]",
    "wake_on_request": "it is a key of the profile, not of [args]",
    "prime": "it is a key of the profile, not of [args]",
    "device_ids": "say gpus = COUNT in the profile, and which ones at launch: --gpus 6,7",
}
"""What gpubox sees to itself, and so is not among the engine's arguments; and what to write instead."""
