"""Keys that configurations written for other trainers carry, and what becomes of them here.

Of config.json (see `run.py`) and of multidatabackend.json (see `datasets.py`). Each table maps a reason, for
the user, to the names that it holds for.
"""

from __future__ import annotations

# Accepted and without effect here.
IGNORED: dict[str, str] = {
    "it concerns images or video": """
        aspect_bucket_alignment aspect_bucket_disable_rebuild aspect_bucket_rounding
        aspect_bucket_worker_count crop crop_style crop_aspect data_aesthetic_score
        debug_aspect_buckets delete_unwanted_images disable_bucket_pruning enable_watermark
        framerate image_processing_batch_size max_grounding_entities maximum_image_size
        max_upscale_threshold minimum_image_size resolution_type target_downsample_size
        tracker_image_layout validation_image_format validation_image_quality
        validation_num_video_frames validation_resolution validation_stitch_input_location
        vae_enable_patch_conv vae_enable_slicing vae_enable_temporal_roll vae_enable_tiling
        enable_nsfw_check nsfw_check_models nsfw_check_min_votes nsfw_check_backend_types
        nsfw_check_sample_types delete_nsfw_images nsfw_check_video_frame_count
        nsfw_check_video_frame_selection nsfw_check_video_min_flagged_frames
        pretrained_grounding_model_name_or_path pretrained_evaluation_model_name_or_path
        eval_dataset_pooling validation_using_datasets validation_input validation_audio_only
        masked_loss_probability""",
    "it belongs to scheduled sampling, which is off": """
        scheduled_sampling_order scheduled_sampling_prob_end scheduled_sampling_ramp_shape
        scheduled_sampling_ramp_steps scheduled_sampling_reflexflow_alpha
        scheduled_sampling_reflexflow_beta1 scheduled_sampling_reflexflow_beta2
        scheduled_sampling_sampler scheduled_sampling_start_step scheduled_sampling_strategy""",
    "it counts with lora_type=lycoris only": "lycoris_config",
    "it counts with offset_noise only": "noise_offset",
    "memory and devices are managed by MLX": """
        accelerator_cache_clear_interval allow_tf32 attention_mechanism base_model_default_dtype
        delete_model_after_load disable_tf32 dynamo_backend dynamo_dynamic dynamo_fullgraph
        dynamo_mode dynamo_use_regional_compilation enable_chunked_feed_forward
        enable_group_offload enable_model_cpu_offload enable_xformers_memory_efficient_attention
        feed_forward_chunk_size fully_unload_text_encoder fuse_qkv_projections fused_qkv_projections
        gradient_checkpointing_backend gradient_checkpointing_interval
        gradient_checkpointing_offload_attention
        gradient_checkpointing_offload_pin_memory_max_buckets
        gradient_checkpointing_offload_prefetch gradient_checkpointing_segment_stride
        gradient_precision group_offload_blocks_per_group group_offload_text_encoder
        group_offload_to_disk_path group_offload_type group_offload_use_stream group_offload_vae
        keep_vae_loaded musubi_block_swap_device musubi_blocks_to_swap offload_during_save
        offload_during_startup offload_param_path optimizer_cpu_offload_method
        optimizer_offload_gradients optimizer_release_gradients fuse_optimizer quantization_config
        quantize_activations quantize_via ramtorch ramtorch_controlnet ramtorch_disable_extensions
        ramtorch_disable_sync_hooks ramtorch_target_modules ramtorch_text_encoder
        ramtorch_text_encoder_percent ramtorch_transformer_percent ramtorch_vae sageattention_usage
        set_grads_to_none text_encoder_4_precision sla_config torch_num_threads unet_attention_slice
        vae_dtype validation_torch_compile validation_torch_compile_mode torch_compile
        i_know_what_i_am_doing""",
    "use mlx.launch for several machines": """
        accelerate_config accelerate_extra_args context_parallel_comm_strategy context_parallel_size
        deepspeed_config enable_multiprocessing find_unused_parameters fsdp_activation_checkpointing
        fsdp_auto_wrap_policy fsdp_cpu_offload fsdp_cpu_ram_efficient_loading fsdp_enable
        fsdp_limit_all_gathers fsdp_reshard_after_forward fsdp_state_dict_type
        fsdp_transformer_layer_cls_to_wrap fsdp_version local_rank machine_rank main_process_ip
        main_process_port num_machines num_processes same_network seed_for_each_device
        validation_multigpu devices multi_gpu num_nodes""",
    "batches come from caches, read one step ahead by one thread": """
        dataloader_prefetch dataloader_prefetch_qlen dataloader_prefetch_factor max_workers
        read_batch_size write_batch_size text_encoder_batch_size data_backend_sampling
        reload_dataloaders_every_n_epochs debug_dataset_loader print_filenames
        print_sampler_statistics allow_dataset_oversubscription""",
    "caches are checked by content, and data sets are scanned at every start": """
        aws_max_pool_connections delete_problematic_images ignore_missing_files
        metadata_update_interval override_dataset_config preserve_data_backend_cache
        skip_file_discovery text_cache_disable text_cache_ondemand text_embed_full_cache
        vae_cache_scan_behaviour vae_cache_preprocess""",
    "nothing that comes with a model is run": "trust_remote_code",
    "captions and lyrics are read as far as the model was trained to": "tokenizer_max_length",
    "the text encoder comes with the model": "qwen_text_encoder_model_name_or_path",
    "the data set's `config` block names columns": """
        parquet_caption_column parquet_filename_column""",
    "publishing is left to the user: upload pytorch_lora_weights.safetensors": """
        hub_model_id model_card_note model_card_private model_card_safe_for_work modelspec_comment
        push_checkpoints_to_hub push_to_hub push_to_hub_background publishing_config""",
    "it concerns another model family or a feature that is off": """
        audio_flow_schedule_shift conditioning_multidataset_sampling control disable_assistant_lora
        ema_cpu_only ema_decay ema_device ema_foreach_disable ema_update_interval ema_validation
        ema_warmup_steps fp16 flow_beta_schedule_alpha flow_beta_schedule_beta flow_sigmoid_scale
        flow_timesteps_mode freeze_encoder_after freeze_encoder_before freeze_encoder_strategy
        huber_c huber_schedule inference_scheduler_timestep_spacing init_lokr_norm init_lora_ema
        init_lora_step layer_freeze_strategy mixflow_gamma noise_offset_probability
        input_perturbation_steps prediction_type prodigy_steps refiner_training_invert_schedule
        refiner_training_strength rescale_betas_zero_snr save_text_encoder singlora_ramp_up_steps
        snr_gamma snr_weight soft_min_snr_sigma_data t5_padding text_encoder_limit text_encoder_lr
        timestep_bias_begin timestep_bias_end timestep_bias_multiplier timestep_bias_portion
        training_scheduler_timestep_spacing use_soft_min_snr
        variant pretrained_vae_model_name_or_path pretrained_t5_model_name_or_path
        pretrained_gemma_model_name_or_path pretrained_unet_model_name_or_path
        pretrained_unet_subfolder pretrained_transformer_subfolder
        assistant_lora_strength
        assistant_lora_inference_strength validation_lycoris_strength vae_path distillation_config
        flow_cubic_schedule_weights disable_segmented_timestep_sampling audio_channels
        custom_text_encoder_intermediary_layers""",
    "it guides distilled models of other families; validation_guidance is the one that counts here": """
        validation_guidance_real validation_no_cfg_until_timestep""",
    "this trainer has its own log, report and checkpoint order": """
        checkpointing_use_tempdir configs_dir custom_tracker delete_invalid_checkpoints
        disable_benchmark disk_low_action disk_low_script disk_low_threshold eval_dataset_id
        eval_epoch_interval eval_timesteps merge_environment_config post_checkpoint_script
        post_upload_script strict_epoch_limit ignore_final_epochs checkpointing_rolling_steps
        checkpoints_rolling_total_limit validate_after_epoch validate_after_step
        validation_adapter_config validation_adapter_mode validation_adapter_name
        validation_adapter_path validation_adapter_strength validation_disable_unconditional
        validation_external_background validation_external_script validation_guidance_rescale
        validation_guidance_skip_layers validation_guidance_skip_layers_start
        validation_guidance_skip_layers_stop validation_guidance_skip_scale validation_method
        validation_noise_scheduler validation_preview validation_preview_steps validation_randomize
        validation_seed_source webhook_config webhook_reporting_interval
        validation_internal_guidance_scale lora_config_save_interval every_plot_step
        val_check_interval checkpoint_dir""",
}

# Switched on, these would change what is learned, so they are errors; off (false, 0, "none") is accepted.
REFUSED: dict[str, str] = {
    "scheduled sampling is not here yet; remove the key": """
        scheduled_sampling_max_step_offset scheduled_sampling_prob_start
        scheduled_sampling_probability scheduled_sampling_reflexflow""",
    "averaged weights (EMA) are not here; set use_ema to false": "use_ema",
    "only the LoRA and the lyrics embedder can be trained; remove the key": """
        train_text_encoder refiner_training""",
    "ControlNet is for image models; remove the key": """
        controlnet controlnet_custom_config controlnet_model_name_or_path""",
    "the timesteps of ACE-Step are logit-normal; use flow_schedule_shift, logit_mean and logit_std": """
        flow_use_uniform_schedule flow_use_beta_schedule flow_schedule_auto_shift
        flow_custom_timesteps flux_fast_schedule""",
    "this training method is not here; remove the key": """
        diff2flow_enabled mixflow_enabled crepa_enabled urepa_enabled irepa_enabled
        layersync_enabled twinflow_enabled nextlat_enabled xm_enabled internal_guidance_enabled
        tread_config diffusion_blocks_config distillation_method slider_lora_target
        input_perturbation offset_noise assistant_lora_path""",
    "the learning rate is used as given; multiply learning_rate yourself": """
        lr_scale lr_scale_sqrt""",
    "give the whole model as pretrained_model_name_or_path instead": """
        pretrained_transformer_model_name_or_path""",
    "describe the data in a data_backend_config file instead (type=huggingface, dataset_name=the folder)": """
        dataset_path""",
    "set lora_rank, lora_alpha, use_rslora and peft_lora_target_modules instead": """
        lora_config_path""",
}

# Any key that begins so is ignored: parameters of training methods whose switch is in REFUSED, of back ends
# that are not here, and of SimpleTuner's other model families.
IGNORED_PREFIXES: dict[str, str] = {
    "it belongs to a training method that is off": """
        crepa_ urepa_ irepa_ layersync_ twinflow_ nextlat_ xm_ internal_guidance_ diff2flow_""",
    "memory and devices are managed by MLX": "sdnq_",
    "it concerns another model family": """
        anima_ auraflow_ boogu_ chroma_ cosmos_ cosmos3_ deepfloyd_ ernie_ flux_ flux2_ heartmula_ hidream_
        hunyuan_ hunyuanvideo_ ideogram_ infinitetalk_ kandinsky5_ kandinsky_ kolors_ krea2_ longcat_ ltx_
        ltx2_ ltxvideo_ ltxvideo2_ lumina2_ mageflow_ minimax_ omnigen_ pixart_ qwen_ sana_ sanavideo_ sd1x_
        sd3_ sdxl_ stable_cascade_ wan_ z_image_ zlab_""",
}

PARQUET = "load parquet files with type=huggingface and caption_strategy=huggingface"
SCHEDULED = "data sets cannot join or leave during a run; train in two runs with resume_from_checkpoint"

# The same of multidatabackend.json, for an entry and each of its blocks.
DATA_IGNORED: dict[str, dict[str, str]] = {
    "entry": {
        "data sets are scanned at every start, and caches are checked by content": """
            metadata_backend skip_file_discovery preserve_data_backend_cache scan_for_errors
            vae_cache_clear_each_epoch vae_cache_scan_behaviour metadata_update_interval
            hash_filenames shorten_filenames cache_file_suffix text_cache_ondemand
            text_cache_disable compress_cache csv_cache_dir text_embed_cache
            delete_problematic_images delete_unwanted_images delete_nsfw_images vaecache subfolder
            disable_validation huggingface_cache_dir huggingface_streaming huggingface_num_proc
            huggingface_auto_load file_extension caption_file_extensions""",
        "it concerns images or video": """
            resolution resolution_type crop crop_style crop_aspect crop_aspect_buckets
            minimum_image_size maximum_image_size target_downsample_size minimum_aspect_ratio
            maximum_aspect_ratio image_column video_column image_embeds conditioning_image_embeds
            video max_upscale_threshold conditioning_data cache_dir_conditioning_image_embeds
            width_column height_column""",
        "songs are encoded one by one": """
            vae_batch_size write_batch_size read_batch_size text_encoder_batch_size
            image_processing_batch_size max_workers shuffle aws_max_pool_connections""",
    },
    "audio": {
        "sound is resampled to the model's rate, in stereo": """
            channels sample_rate audio_channels allow_zero_audio""",
        "it concerns video": "auto_split source_from_video audio_only target_resolution",
    },
    "columns": {
        "the sound itself says how long it is": """
            duration_column audio_duration_column audio_sample_rate_column audio_num_samples_column
            audio_channels_column width_column height_column num_frames_column fps_column
            description_column quality_column image_column video_column""",
        "downloads follow the Hugging Face library's own settings": "num_proc auto_load shuffle",
        "it concerns images": "composite_image_config bbox_column",
    },
    "shuffle": {},
}

DATA_REFUSED: dict[str, dict[str, str]] = {
    "entry": {
        SCHEDULED: "end_epoch end_step",
        "regularisation against the base model is not here; remove the key": """
            is_regularisation_data is_regularization_data slider_strength""",
        "one batch size holds for all data sets: set train_batch_size in config.json": "train_batch_size",
        "timesteps are the same for all data sets: set logit_mean in config.json": "timestep_sampling_offset",
        "it is for other models; remove the key": "conditioning s2v_datasets grounding_data",
        PARQUET: "parquet",
    },
    "audio": {},
    "columns": {"filter the data set before training; remove the key": "filter_func"},
    "shuffle": {},
}
