"""Names that LiteLLM's configuration knows beyond those we read: without effect here, or not to be dropped."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

# Source of the names: LiteLLM's documentation page "All settings", and the keyword arguments of `litellm.completion`.


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ROUTER: Final = _words("""
    allowed_fails_policy cache_kwargs cache_responses caching_groups client_ttl content_policy_fallbacks
    context_window_fallbacks debug_level default_fallbacks default_litellm_params default_max_parallel_requests
    default_priority disable_cooldowns enable_pre_call_check enable_pre_call_checks enable_weighted_failover fallbacks
    ignore_invalid_deployments max_fallbacks model_group_retry_policy optional_pre_call_checks polling_interval
    redis_db redis_host redis_password redis_port redis_url retry_policy routing_groups routing_strategy
    routing_strategy_args set_verbose stream_timeout alerting_config
""")

IGNORED: Final[Mapping[str, frozenset[str]]] = {
    "": _words("""
        agent_list assistant_settings callback_settings credential_list files_settings finetune_settings mcp_aliases
        mcp_servers mcp_tools model_group_settings pass_through_endpoints prompts search_tools tools
        vector_store_registry cache_params worker_registry
    """),
    "litellm_settings": _ROUTER
    | _words("""
        LITELLM_DISABLE_STOP_SEQUENCE_LIMIT add_function_to_prompt async_callbacks audit_log_callbacks cache
        cache_params cost_discount_config cost_margin_config custom_prometheus_metadata_labels custom_prometheus_tags
        datadog_params default_team_settings disable_add_prefix_to_prompt disable_add_transform_inline_image_block
        disable_copilot_system_to_assistant disable_end_user_cost_tracking
        disable_end_user_cost_tracking_prometheus_only disable_hf_tokenizer_download disable_token_counter drop_params
        enable_json_schema_validation enable_key_alias_format_validation enable_preview_features failure_callback
        force_ipv4 forward_traceparent_to_llm_provider global_bitbucket_config global_gitlab_config
        global_prompt_directory include_cost_in_streaming_usage json_logs key_generation_settings
        langfuse_default_tags log_raw_request_response mcp_aliases mcp_semantic_tool_filter model_alias_map
        modify_params priority_reservation prometheus_initialize_budget_metrics prometheus_metrics_config
        public_agent_groups public_mcp_servers public_model_groups redact_messages_in_exceptions
        redact_user_api_key_info require_auth_for_metrics_endpoint return_response_headers s3_callback_params
        service_callback service_callbacks ssl_certificate ssl_security_level ssl_verify store_audit_logs
        success_callback suppress_debug_info telemetry tag_budget_config turn_off_message_logging
        use_chat_completions_url_for_anthropic_messages use_litellm_proxy user_url_validation
        vertex_ai_safety_settings
    """),
    "router_settings": _ROUTER | frozenset(["tag_filtering_match_any"]),
    "general_settings": _words("""
        alert_to_webhook_url alert_type_config alert_types alerting alerting_args alerting_threshold
        allow_client_side_credentials allow_requests_on_db_unavailable always_include_stream_usage
        background_health_checks completion_model control_plane_url custom_key_generate custom_key_update custom_sso
        custom_ui_sso_sign_in_handler dangerously_permit_weak_or_unset_master_key database_args
        database_connection_pool_limit database_connection_timeout database_type database_url default_team_disabled
        disable_adding_master_key_hash_to_db disable_error_logs disable_master_key_return disable_prisma_schema_update
        disable_reset_budget disable_responses_id_security disable_retry_on_max_parallel_request_limit_error
        disable_spend_logs disable_spend_updates embedding_model forward_client_headers_to_llm_api
        forward_llm_provider_auth_headers forward_openai_org_id health_check_concurrency health_check_details
        health_check_interval image_generation_model infer_model_from_keys key_management_settings
        key_management_system litellm_key_header_name litellm_license maximum_spend_logs_cleanup_cron
        maximum_spend_logs_retention_interval maximum_spend_logs_retention_period mcp_internal_ip_ranges
        moderation_model pass_through_endpoints proxy_batch_polling_interval proxy_batch_write_at
        proxy_budget_rescheduler_max_time proxy_budget_rescheduler_min_time public_routes search_tools
        spend_report_frequency store_model_in_db store_prompts_in_spend_logs supported_db_objects ui_access_mode
        ui_logo_path use_azure_key_vault use_client_credentials_pass_through_routes use_google_kms
        use_redis_transaction_buffer use_shared_health_check use_x_forwarded_for user_api_key_cache_ttl
        user_header_mappings user_header_name user_mcp_management_mode enable_health_check_routing
    """),
}
"""By section: keys that are known from LiteLLM, and change nothing here."""

RESTRICTING: Final[Mapping[str, frozenset[str]]] = {
    "": frozenset(["guardrails", "policies", "policy_attachments"]),
    "litellm_settings": _words("""
        banned_keywords_list blocked_user_list budget_duration default_end_user_params default_internal_user_params
        default_key_generate_params google_moderation_confidence_threshold guardrails internal_user_budget_duration
        llm_guard_mode max_budget max_end_user_budget max_end_user_budget_id max_internal_user_budget
        max_ui_session_budget max_user_budget openai_moderations_model_name output_parse_pii post_call_rules
        pre_call_rules presidio_ad_hoc_recognizers presidio_language upperbound_key_generate_params
        user_budget_duration
    """),
    "router_settings": frozenset(["enable_tag_filtering", "provider_budget_config"]),
    "general_settings": _words("""
        admin_only_routes allow_user_auth allowed_ips allowed_routes budget_duration custom_auth
        custom_auth_run_common_checks enable_jwt_auth enable_oauth2_auth enable_oauth2_proxy_auth enforce_user_param
        enforced_params global_max_parallel_requests litellm_jwtauth max_budget max_parallel_requests
        oauth2_config_mappings reject_clientside_metadata_tags role_permissions service_account_settings
    """),
    "litellm_params": frozenset(["guardrails", "max_budget", "budget_duration", "blocked_tags"]),
}
"""By section: keys that restrict access or change requests. Dropping one silently is worse than not starting."""

HINTS: Final[Mapping[str, str]] = {
    "success_callback": ": logging callbacks do not run here",
    "failure_callback": ": logging callbacks do not run here",
    "service_callbacks": ": logging callbacks do not run here",
    "turn_off_message_logging": ": bodies are never logged",
    "redact_messages_in_exceptions": ": bodies are never logged",
    "set_verbose": "; start with --detailed_debug instead",
    "database_url": ": there is no database; keys stand in promptmill_settings.keys",
    "prompts": ": prompt managers are named in litellm_settings.callbacks",
    "redis_host": "; give promptmill_settings.redis_url or REDIS_URL",
    "redis_port": "; give promptmill_settings.redis_url or REDIS_URL",
    "redis_password": "; give promptmill_settings.redis_url or REDIS_URL",
    "redis_url": "; give promptmill_settings.redis_url or REDIS_URL",
    "dangerously_permit_weak_or_unset_master_key": ": without a key only loopback addresses are served",
}
"""What to say beyond "has no effect here yet"."""

CONTROL_PARAMS: Final = _words("""
    additional_drop_params allowed_openai_params acompletion adapter_id api_type auto_router_config
    auto_router_config_path auto_router_default_model auto_router_embedding_model azure_ad_token
    azure_ad_token_provider azure_password azure_scope azure_username base_model batch_params bucket_name budget_id
    cache caching cache_control_injection_points client client_id client_secret completion_call_id
    complexity_router_config complexity_router_default_model configurable_clientside_auth_params
    context_window_fallback_dict cooldown_time custom_llm_provider custom_prompt_dict custom_tokenizer
    default_api_key_rpm_limit default_api_key_tpm_limit deployment_id disable_add_transform_inline_image_block
    drop_params ensure_alternating_roles extra_query fallbacks final_prompt_value force_timeout gcs_bucket_name
    gigachat_scope hf_model_name hugging_face input input_cost_per_audio_token input_cost_per_character
    input_cost_per_image input_cost_per_pixel input_cost_per_query input_cost_per_second input_cost_per_token
    initial_prompt_value litellm_credential_name litellm_logging_obj litellm_metadata litellm_system_prompt
    litellm_trace_id logger_fn max_file_size_mb merge_reasoning_content_in_choices messages metadata milvus_text_field
    mock_delay mock_timeout mock_tool_calls model_info model_file_id_mapping model_list no-log
    output_cost_per_audio_token output_cost_per_character output_cost_per_image output_cost_per_pixel
    output_cost_per_reasoning_token output_cost_per_second output_cost_per_token preset_cache_key order
    prompt_environment prompt_spec provider_specific_header proxy_server_request region_name roles rules
    s3_bucket_name s3_encryption_key_id s3_output_bucket_name secret_fields shared_session ssl_verify stream
    stream_response supports_system_message tag_regex tags tenant_id text_completion use_chat_completions_api
    use_in_pass_through use_litellm_proxy use_xai_oauth user_continue_message vector_size vector_store_id verbose
""")
"""`litellm_params` that are no body fields: they steer LiteLLM itself, or hold credentials of other dialects."""

_CREDENTIAL: Final = re.compile(
    r"(aws|vertex|vertex_ai|watsonx|gcs|s3|oci|sagemaker|litellm)_.*"
    r"|.*(api_key|secret|password|credential|private_key|access_key|cost_per_|_token_id).*|.*_token|.*_auth",
    re.ASCII,
)


def is_control(param: str) -> bool:
    """Whether a key of `litellm_params` must not reach a body: LiteLLM's own, or by its name a credential."""
    return param in CONTROL_PARAMS or _CREDENTIAL.fullmatch(param) is not None


LOGGING_CALLBACKS: Final = _words("""
    agentops aispend anthropic_cache_control_hook argilla arize arize_phoenix athina azure_sentinel azure_storage
    berrispend bitbucket bitbucket_prompt braintrust cloudzero custom_callback_api datadog datadog_cost_management
    datadog_llm_observability deepeval dotprompt dynamodb email focus galileo gcs_bucket gcs_pubsub generic_api
    generic_prompt_management gitlab gitlab_prompt greenscale helicone humanloop lago langfuse langfuse_otel langsmith
    langtrace levo lite_debugger literalai litellm_agent logfire logfire_otel lunary mlflow opik openmeter otel
    posthog prometheus prometheus_system promptlayer resend_email responses_id_security s3 s3_v2 sendgrid_email sentry
    slack smtp_email sqs supabase traceloop vantage vector_store_pre_call_hook wandb weave weave_otel webhook
    websearch_interception
""")
"""Built-in callbacks of LiteLLM that log, or find prompts elsewhere; none of them runs here."""

CONTROL_CALLBACKS: Final = _words("""
    aporia_prompt_injection azure_content_safety banned_keywords batch_rate_limiter blocked_user_check
    detect_prompt_injection dynamic_rate_limiter dynamic_rate_limiter_v3 google_text_moderation hide_secrets
    lakera_prompt_injection llamaguard_moderations llmguard_moderations max_budget_limiter max_iterations_handler
    openai_moderations parallel_request_limiter presidio
""")
"""Built-in callbacks of LiteLLM that refuse or change requests."""

BLOCKED_VARIABLES: Final = _words("""
    BASH_ENV ENV GCONV_PATH HOME IFS LOGNAME NODE_OPTIONS PATH PERL5LIB PERL5OPT PROMPTMILL_CONFIG
    PROMPTMILL_DATA_DIR SHELL SHELLOPTS
    TMPDIR USER USERPROFILE COMSPEC SYSTEMROOT
""")
"""Variables that decide what code a process loads or whose files it uses."""

BLOCKED_VARIABLE_PREFIXES: Final = ("LD_", "DYLD_", "PYTHON")
