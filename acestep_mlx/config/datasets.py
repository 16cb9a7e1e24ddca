"""The keys of multidatabackend.json, each declared once: data sets, their blocks, the caches of texts."""

from __future__ import annotations

from .run import Option

STRATEGIES = ("textfile", "filename", "instanceprompt", "csv", "huggingface")
_PARQUET = "load parquet files with type=huggingface and caption_strategy=huggingface"
_CLOUD = "only local folders, CSV lists and Hugging Face data sets are here; copy the files to a local folder"
_SCHEDULED = "data sets cannot join or leave during a run; train in two runs with resume_from_checkpoint"

ENTRY = (
    Option("id", "str", None, "Name of the data set; part of cache paths."),
    Option(
        "type",
        "str",
        "local",
        "Where the files are.",
        choices=("local", "huggingface", "csv"),
        refused_values=dict.fromkeys(("aws", "memory", "webshart", "parquet"), _CLOUD),
    ),
    Option(
        "dataset_type",
        "str",
        "audio",
        "What it holds.",
        choices=("audio", "text_embeds"),
        refused_values=dict.fromkeys(
            ("image", "video", "conditioning", "eval", "caption", "distillation_cache"),
            "ACE-Step trains on sound; set dataset_type=audio or remove the entry",
        ),
    ),
    Option("instance_data_dir", "path", None, "Folder with the songs.", aliases=("instance_data_root",)),
    Option("dataset_name", "path", None, "Hugging Face data set, or a local folder that holds one."),
    Option("split", "str", None, "Split of a Hugging Face data set; train where it has splits."),
    Option("revision", "str", None, "Revision of a Hugging Face data set."),
    Option(
        "caption_strategy",
        "str",
        None,
        "Where captions come from.",
        choices=STRATEGIES,
        refused_values={"parquet": _PARQUET},
    ),
    Option("default", "bool", False, "Of a text_embeds entry: use it where a data set names none."),
    Option("disabled", "bool", False, "Leave this data set out.", aliases=("disable",)),
    Option("repeats", "int", 0, "Further times each song is seen per epoch.", low=0, high=10**6),
    Option("probability", "float", 1.0, "Share of the songs seen per epoch.", above=0, high=1000),
    Option("max_num_samples", "int", None, "Use a fixed random subset of this size.", low=1, high=10**9),
    Option("caption_shuffle", "any", None, "Shuffled variants of tag captions."),
    Option("instance_prompt", "str", None, "Trigger words."),
    Option("prepend_instance_prompt", "bool", None, "Put instance_prompt before every caption."),
    Option("only_instance_prompt", "bool", None, "Use instance_prompt instead of every caption."),
    Option("disable_multiline_split", "bool", None, "A caption file is one caption."),
    Option("cache_dir_vae", "path", None, "Latent caches."),
    Option("cache_dir", "path", None, "Folder of a text_embeds entry's caches."),
    Option("text_embeds", "str", None, "id of the text_embeds entry to use."),
    Option("vae_cache_disable", "bool", None, "Write no latents of this set to disk."),
    Option("vae_cache_ondemand", "bool", None, "Encode latents of this set when first needed."),
    Option("csv_file", "path", None, "CSV list of songs, in or below instance_data_dir."),
    Option("csv_filename_column", "str", None, "Column with the file name.", aliases=("csv_url_column",)),
    Option("csv_caption_column", "str", None, "Column with the caption."),
    Option("csv_lyrics_column", "str", None, "Column with the lyrics."),
    Option("audio", "any", None, "Durations and lyrics files."),
    Option("config", "any", None, "Columns of a Hugging Face data set."),
    Option("huggingface", "any", None, "Columns of a Hugging Face data set."),
    Option("caption_column", "any", None, "Column or columns with captions."),
    Option("audio_column", "str", None, "Column with the sound."),
    Option("lyrics_column", "str", None, "Column with the lyrics."),
)

AUDIO = (
    Option("max_duration_seconds", "float", None, "Longer songs are cut.", low=3, high=240,
           aliases=("audio_max_duration_seconds", "max_duration")),
    Option("min_duration_seconds", "float", None, "Shorter songs are skipped.", low=0, high=240,
           aliases=("audio_min_duration_seconds", "min_duration")),
    Option("duration_interval", "float", None, "Bucket width.", low=0.1, high=240,
           aliases=("audio_duration_interval", "audio_duration_interval_seconds", "audio_bucket_interval")),
    Option("truncation_mode", "str", None, "Which part of a long song is kept.",
           choices=("beginning", "end", "random"), aliases=("audio_truncation_mode",)),
    Option("bucket_strategy", "str", "duration", "How songs are grouped.", choices=("duration",)),
    Option("lyrics_filename_format", "str", None, "Name of a lyrics file; tokens {filename}, {ext}, ..."),
    Option("lyrics_extension", "str", None, "Ending of a lyrics file's name."),
    Option("lyrics_suffix", "str", None, "What follows the stem in a lyrics file's name."),
    Option("lyrics_language", "str", None, "Language of all lyrics (ja, Japanese); default: found by line."),
    Option("lyrics_unsupported", "str", "warn", "Lyrics in a script without tokens are counted, or an error.",
           choices=("warn", "error")),
)  # fmt: skip

COLUMNS = (
    Option("audio_caption_fields", "any", None, "Columns of the caption.", aliases=("caption_column",)),
    Option("fallback_caption_column", "str", None, "Column used where the caption is empty."),
    Option("lyrics_column", "str", None, "Column with the lyrics."),
    Option("audio_column", "str", None, "Column with the sound."),
    Option("split", "str", None, "Split."),
    Option("revision", "str", None, "Revision."),
    Option("cache_dir", "path", None, "Where downloads are kept."),
    Option("streaming", "bool", None, "Download only the first max_num_samples rows."),
)

SHUFFLE = (
    Option("enable", "bool", False, "Make shuffled variants."),
    Option("count", "int", 1, "Variants per caption.", low=1, high=64),
    Option("seed", "int", None, "Seed of the shuffles.", low=0, high=2**32 - 1),
    Option("split_on", "str", "comma", "What separates tags.", choices=("comma", "space", "period")),
    Option("position_start", "int", 0, "Tags at the beginning that stay in place.", low=0, high=1000),
    Option("include_original", "bool", True, "Keep the unshuffled caption too."),
)

_IGNORED: dict[str, dict[str, str]] = {
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
        "sound is resampled to 44.1 kHz stereo": "channels sample_rate audio_channels allow_zero_audio",
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

_REFUSED: dict[str, dict[str, str]] = {
    "entry": {
        _SCHEDULED: "start_epoch start_step end_epoch end_step",
        "regularisation against the base model is not here; remove the key": """
            is_regularisation_data is_regularization_data slider_strength""",
        "one batch size holds for all data sets: set train_batch_size in config.json": "train_batch_size",
        "timesteps are the same for all data sets: set logit_mean in config.json": "timestep_sampling_offset",
        "it is for other models; remove the key": "conditioning s2v_datasets grounding_data",
        _PARQUET: "parquet",
    },
    "audio": {},
    "columns": {"filter the data set before training; remove the key": "filter_func"},
    "shuffle": {},
}
OFF_VALUES = {"start_epoch": (1, 0), "start_step": (0, 1)}


def _table(name: str, options: tuple[Option, ...]) -> dict[str, Option]:
    table = {option.name: option for option in options}
    for status, groups in (("ignored", _IGNORED[name]), ("refused", _REFUSED[name])):
        for reason, names in groups.items():
            for key in names.split():
                table[key] = Option(key, "any", None, "", status=status, reason=reason)  # type: ignore[arg-type]
    return table


TABLES = {
    "entry": _table("entry", ENTRY),
    "audio": _table("audio", AUDIO),
    "columns": _table("columns", COLUMNS),
    "shuffle": _table("shuffle", SHUFFLE),
}
