"""What users of other systems suffer from, with the threads where they say so, and the tests that keep it away here.

Forty-seven pains were collected from public threads of 2023 to 2026 (a number without an owner is one of the project
named before it). Each has the tests that would fail if it could happen; `test_museum.py` holds that they are there.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NOT_HELD", "PAINS", "Pain"]


@dataclass(frozen=True)
class Pain:
    """One of them: `tests` are FILE::NAME below `tests/`."""

    number: int
    symptom: str
    threads: tuple[str, ...]
    tests: tuple[str, ...]


NOT_HELD = {
    46: "evaluation or saving hangs where ranks take different branches: everything runs in one process a cell",
}
"""Numbers of pains that no test holds, and why."""

PAINS = (
    Pain(
        1,
        "KL is negative",
        ("trl#925", "trl#1161", "trl#1857", "LlamaFactory#664", "#1833", "#3902", "MedicalGPT#374"),
        (
            "rollout/test_native.py::test_captured_logprobs_are_the_teacher_forced_ones",
            "rollout/test_compiled.py::test_draws_follow_the_distribution",
            "algorithms/test_losses.py::test_k3_keeps_its_digits_near_zero",
            "museum/test_pains.py::test_a_sampler_that_truncates_cannot_be_asked_for",
        ),
    ),
    Pain(
        2,
        "KL explodes, the reward rises, the text is garbage",
        ("trl#204", "trl#1098", "LlamaFactory#4012", "RAGEN#52"),
        (
            "algorithms/test_state.py::test_adaptive_kl_steers_towards_its_target",
            "evaluation/test_evaluate_page.py::test_picks_are_the_end_the_proxys_best_and_the_selection_judges_best",
            "study/test_verdict.py::test_a_collapse_is_said",
        ),
    ),
    Pain(
        3,
        "with LoRA the reference is the wrong model",
        ("trl#495", "trl#1005", "trl#1340", "trl#4723", "trl#6043", "trl#6591"),
        (
            "training/test_gates.py::test_a_reference_that_sft_did_not_save_is_refused",
            "training/test_own_models.py::test_adapters_train_on_a_base_that_stays",
            "models/test_adapters.py::test_models_on_one_base_share_it_and_train_apart",
        ),
    ),
    Pain(
        4,
        "KL is large at the start, through dropout or precision",
        ("trl#744", "trl#3500", "direct-preference-optimization#34"),
        (
            "museum/test_pains.py::test_a_folder_with_dropout_scores_without_it",
            "models/test_precision.py::test_the_same_model_has_no_kl_to_itself_in_bf16",
        ),
    ),
    Pain(
        5,
        "the rollout engine's log-probs are not the trainer's",
        (
            "trl#3867",
            "trl#4772",
            "trl#6789",
            "verl#2953",
            "verl#3694",
            "OpenRLHF#853",
            "trl#3029",
            "trl#4159",
            "NeMo-RL#935",
            "prime-rl#697",
        ),
        (
            "training/test_start_gates.py::test_an_engine_with_other_weights_is_refused",
            "rollout/test_compiled.py::test_what_was_captured_is_what_the_trainer_scores",
        ),
    ),
    Pain(
        6,
        "the rollout engine samples with old weights",
        ("trl#5312", "trl#5313", "verl#3821", "verl#3516", "ms-swift#8233", "unsloth-zoo#941"),
        (
            "rollout/test_compiled.py::test_the_weights_are_the_present_ones",
            "rollout/test_native.py::test_weights_are_those_of_the_last_load",
            "training/test_start_gates.py::test_an_engine_with_other_weights_is_refused",
        ),
    ),
    Pain(
        7,
        "KL has the wrong sign or controller",
        ("verl a65c9157", "Logic-RL#58", "RAGEN#58", "ToolRL#52", "trlx#361", "OpenRLHF#1289"),
        (
            "museum/test_pains.py::test_a_larger_coefficient_holds_the_policy_closer",
            "algorithms/test_state.py::test_adaptive_kl_by_hand",
            "training/test_ppo_estimates.py::test_kl_is_paid_at_every_token_of_either_kind_of_row",
        ),
    ),
    Pain(
        8,
        "there is no KL at all by default, and nobody says so",
        ("verl's configuration",),
        ("training/test_settings.py::test_the_objective_is_one_line",),
    ),
    Pain(
        9,
        "chosen log-probs fall together with rejected ones",
        (
            "direct-preference-optimization#8",
            "#32",
            "#36",
            "trl#800",
            "OpenRLHF#1054",
            "LlamaFactory#7643",
            "RLHF-V#26",
        ),
        (
            "study/test_probes.py::test_the_alarm_says_what_to_do_and_only_to_arms_that_learn_from_pairs",
            "algorithms/test_preference_losses.py::test_dpo_positive_by_hand",
            "training/test_start_gates.py::test_dpo_with_the_nll_term_passes_its_gate",
        ),
    ),
    Pain(
        10,
        "accuracy goes to 1 and the text repeats",
        ("LlamaFactory#1347", "LlamaFactory#5116", "trl#1236"),
        (
            "training/test_page_contract.py::test_a_run_books_each_step_and_ends_complete",
            "evaluation/test_evaluate_page.py::test_samples_show_every_kind_of_prompt_and_those_of_training",
        ),
    ),
    Pain(
        11,
        "the loss stays at 0.6931",
        ("ETO#14",),
        (
            "training/test_gates.py::test_examples_without_an_end_and_prompts_with_two_bos_are_found",
            "museum/test_pains.py::test_pairs_that_cutting_makes_equal_are_refused",
        ),
    ),
    Pain(
        12,
        "truncation empties the answer",
        ("trl#6548", "trl#6321", "trl#2538", "trl#2551", "LlamaFactory#4402", "LlamaFactory#4617"),
        (
            "data_reading/test_survey.py::test_a_pair_that_cutting_makes_equal_is_told",
            "museum/test_pains.py::test_pairs_that_cutting_makes_equal_are_refused",
            "tasks/test_programs.py::test_prompts_that_do_not_fit_are_an_error_that_names_the_problem",
        ),
    ),
    Pain(
        13,
        "tokens merge where prompt and response meet",
        ("trl#2054", "trl#2209"),
        (
            "data_reading/test_chat_transformers.py::test_an_answered_conversation_is_prompt_and_response",
            "data_reading/test_chat.py::test_a_template_that_cannot_serve_is_refused",
        ),
    ),
    Pain(
        14,
        "several turns, or HH-RLHF, are split wrongly",
        ("trl#1858", "axolotl#1645", "OpenRLHF#909"),
        (
            "data_reading/test_hh_rlhf.py::test_each_quirk_is_counted_under_its_name",
            "data_reading/test_hh_rlhf.py::test_parse_inverts_render",
            "data_reading/test_survey.py::test_the_command_writes_what_it_found",
        ),
    ),
    Pain(
        15,
        "iterative DPO is absent or broken",
        ("Online-RLHF#8",),
        (
            "training/test_references.py::test_a_rounds_pairs_survive_a_checkpoint",
            "training/test_references.py::test_each_rounds_reference_is_its_start_or_sft",
        ),
    ),
    Pain(
        16,
        "the reward at inference is not that of training",
        ("LlamaFactory#1447",),
        ("training/test_gates.py::test_a_reward_model_that_scores_otherwise_than_in_training_is_refused",),
    ),
    Pain(
        17,
        "PPO was removed, or breaks with its libraries",
        ("trl#7020", "trl#4223", "trl#2657", "LlamaFactory#10757", "#9617", "#8715"),
        (
            "test_architecture.py::test_imports_follow_the_table",
            "training/test_ppo_by_hand.py::test_log_probs_and_estimates_are_the_derived_ones",
        ),
    ),
    Pain(
        18,
        "the value loss explodes",
        ("DeepSpeedExamples#556",),
        (
            "training/test_ppo_estimates.py::test_value_normalisation_leaves_advantages_in_reward_units",
            "algorithms/test_losses.py::test_explained_variance_by_hand",
            "training/test_references.py::test_a_critic_warm_up_moves_neither_policy_nor_reference",
        ),
    ),
    Pain(
        19,
        "where the critic comes from, and goes to, is unclear",
        ("trl#769", "trlx#345", "LlamaFactory#124", "LlamaFactory#1464", "trl#3308"),
        (
            "training/test_ppo_estimates.py::test_the_critic_that_starts_from_the_reward_model_predicts_the_score",
            "models/test_checkpoints.py::test_a_saved_critic_is_a_token_classifier",
        ),
    ),
    Pain(
        20,
        "reward normalisation does nothing",
        ("OpenRLHF#693", "OpenRLHF#822"),
        (
            "models/test_models.py::test_standardized_scores_by_hand",
            "training/test_gates.py::test_every_method_passes_its_gates",
        ),
    ),
    Pain(
        21,
        "the reward model has another tokenizer",
        ("trl#1674", "trl#3595", "trl#1979", "OpenRLHF#242", "open-instruct#512", "trl#6955"),
        ("evaluation/test_other_tokenizer.py::test_the_proxy_reads_a_text_alike_whoever_wrote_it",),
    ),
    Pain(
        22,
        "reward training and PPO tokenise differently",
        ("trl#1702",),
        ("training/test_gates.py::test_a_reward_model_that_scores_otherwise_than_in_training_is_refused",),
    ),
    Pain(
        23,
        "the score is read at padding",
        ("trl#2778", "trlx#474", "reward-bench#137", "RLHF-Reward-Modeling#49"),
        (
            "training/test_gates.py::test_a_model_that_reads_padding_is_found",
            "models/test_models.py::test_scores_do_not_depend_on_the_grouping",
            "models/test_architectures.py::test_reward_models_and_critics_load_in_transformers",
        ),
    ),
    Pain(
        24,
        "the reward lands on padding after the end",
        ("trl#3750", "trl#5338"),
        (
            "training/test_ppo_estimates.py::test_the_score_lands_on_the_last_real_token_where_the_response_ended",
            "training/test_ppo_estimates.py::test_a_cut_response_gets_no_score_and_is_bootstrapped",
            "training/test_ppo_beside_trl.py::test_the_extra_state_is_what_the_ended_rows_differ_by",
        ),
    ),
    Pain(
        25,
        "the model never stops",
        ("trl#734", "trl#1025", "unsloth#416", "unsloth#3228", "DeepSeek-Coder#163"),
        (
            "training/test_gates.py::test_a_policy_none_of_whose_samples_end_is_refused_by_ppo",
            "training/test_gates.py::test_examples_without_an_end_and_prompts_with_two_bos_are_found",
            "data_reading/test_chat.py::test_an_answer_ends_with_what_the_template_writes",
            "data_reading/test_chat.py::test_pad_is_the_one_named_or_a_spare_one_or_the_end",
        ),
    ),
    Pain(
        26,
        "two BOS, or none",
        ("axolotl#1616", "reward-bench#164", "RLHF-Reward-Modeling#16", "GRM#6", "trl#1073", "unsloth#2648"),
        (
            "data_reading/test_chat.py::test_there_is_one_bos_or_none",
            "training/test_gates.py::test_examples_without_an_end_and_prompts_with_two_bos_are_found",
        ),
    ),
    Pain(
        27,
        "longer answers, and repetition, are paid",
        ("safe-rlhf#71", "OpenRLHF#236", "trl#986", "verl#2435"),
        (
            "training/test_reward_page.py::test_length_controls_by_hand",
            "study/test_study_statistics.py::test_pure_length_effect_vanishes",
            "training/test_ppo_estimates.py::test_a_cut_response_gets_no_score_and_is_bootstrapped",
        ),
    ),
    Pain(
        28,
        "PPO is worse than SFT and nobody compared",
        ("ChatGLM-Tuning#113", "trl#1106"),
        (
            "evaluation/test_evaluate_page.py::test_an_arm_that_ends_below_sft_is_marked",
            "study/test_verdict.py::test_a_floor_that_beats_the_best_is_said",
        ),
    ),
    Pain(
        29,
        "advantages are normalised per GPU",
        ("slime#393", "slime#1369", "slime#2235", "miles#3229"),
        ("algorithms/test_masking.py::test_ranks_normalize_as_one_batch_with_merged_moments",),
    ),
    Pain(
        30,
        "gradient accumulation is not equivalent",
        (
            "trl#583",
            "trl#2596",
            "trl#3021",
            "trl#5619",
            "trl#6024",
            "ms-swift#10117",
            "open-instruct#1137",
            "open-instruct#1161",
            "unsloth#1178",
        ),
        (
            "algorithms/test_masking.py::test_microbatches_with_the_global_denominator_add_up",
            "training/test_page_contract.py::test_the_size_of_micro_batches_changes_rounding_only",
            "training/test_golden_trajectories.py::test_smaller_micro_batches_give_the_same_trajectory",
        ),
    ),
    Pain(
        31,
        "defaults are dubious and undocumented",
        ("trl's PPO", "OpenRLHF's reward clip", "verl's KL"),
        (
            "training/test_settings.py::test_every_setting_says_what_it_is",
            "training/test_settings.py::test_the_objective_is_one_line",
        ),
    ),
    Pain(
        32,
        "six batch sizes",
        ("verl#180", "verl#376", "verl#1265", "verl#1524", "Logic-RL#56", "OpenRLHF#304", "OpenRLHF#431"),
        (
            "training/test_settings.py::test_the_batch_size_is_the_number_of_responses",
            "training/test_settings.py::test_more_minibatches_than_responses_are_as_many_as_there_are",
        ),
    ),
    Pain(
        33,
        "out of memory",
        ("open-instruct#393", "OpenRLHF#95", "#275", "#392", "#398", "trl#688", "trlx#266", "trlx#431"),
        (
            "training/test_memory.py::test_a_method_that_runs_out_of_memory_trains_the_same_model",
            "training/test_memory.py::test_a_step_in_smaller_parts_is_the_same_step",
            "models/test_scoring.py::test_recomputed_chunks_change_neither_value_nor_gradient",
        ),
    ),
    Pain(
        34,
        "rollouts are slow",
        ("LlamaFactory#2103", "LlamaFactory#5626", "OpenRLHF#420", "OpenRLHF#609", "safe-rlhf#40", "verl#5111"),
        (
            "rollout/test_compiled.py::test_the_same_tokens_and_logprobs_as_the_plain_loop",
            "rollout/test_native.py::test_compaction_changes_nothing",
        ),
    ),
    Pain(
        35,
        "a run cannot be resumed, or not exactly",
        (
            "trl#1643",
            "trl#2444",
            "trl#3179",
            "trl#2657",
            "open-instruct#488",
            "open-instruct#1823",
            "verl#579",
            "LlamaFactory#7538",
            "LlamaFactory#8715",
        ),
        (
            "training/test_page_contract.py::test_an_interrupted_run_ends_like_an_uninterrupted_one",
            "training/test_page_contract.py::test_a_kill_between_samples_and_checkpoint_leaves_no_gap",
        ),
    ),
    Pain(
        36,
        "checkpoints cannot be loaded",
        ("verl#533", "verl#1067", "verl#1246", "verl#1438", "verl#2252", "trl#2188", "trl#3071"),
        (
            "models/test_architectures.py::test_saved_policies_load_in_transformers",
            "models/test_architectures.py::test_reward_models_and_critics_load_in_transformers",
            "models/test_adapters.py::test_peft_loads_policy_reward_model_and_critic",
            "training/test_every_architecture.py::test_four_methods_train_it_and_transformers_reads_it",
        ),
    ),
    Pain(
        37,
        "the seed is ignored",
        ("torchtune#2335", "trl#1810", "ms-swift#3607", "unsloth#617"),
        (
            "training/test_page_contract.py::test_the_same_seed_gives_the_same_bytes",
            "training/test_page_contract.py::test_another_seed_gives_another_run",
        ),
    ),
    Pain(
        38,
        "the interface changes under tutorials",
        ("trl#1281", "trl#2161", "trl#2226", "trl#6168", "collabllm#12", "LlamaFactory#5936"),
        ("test_public_api.py::test_the_public_names_are_exactly_these",),
    ),
    Pain(
        39,
        "settings that nothing reads",
        ("verl's configuration",),
        (
            "training/test_settings.py::test_every_setting_is_read_by_its_page",
            "test_config.py::test_sections_are_frozen_and_closed",
        ),
    ),
    Pain(
        40,
        "nobody can read the metrics",
        ("trl#615", "trl#2052", "trl#3893", "ColossalAI#3574", "LlamaFactory#845", "LlamaFactory#856"),
        ("museum/test_pains.py::test_every_metric_that_is_written_is_in_the_glossary",),
    ),
    Pain(
        41,
        "rewards that run code hang or leak",
        ("verl#288", "PRIME#56", "SvS#3", "code-r1#7", "ArcherCodeR#6", "NeMo-RL#816", "NeMo-RL#2208"),
        (
            "sandbox/test_corpus.py::test_the_corpus_is_contained",
            "sandbox/test_pool.py::test_a_worker_that_dies_twice_is_infrastructure_never_a_failure",
            "sandbox/test_judging.py::test_time_limits_hold_for_each_call",
        ),
    ),
    Pain(
        42,
        "the CPU path breaks",
        ("trl#440", "trl#1913", "trl#7220"),
        (
            "training/test_page_contract.py::test_in_bf16_a_page_passes_its_gates_and_learns_the_same",
            "models/test_packed.py::test_without_a_compiler_there_are_no_kernels",
        ),
    ),
    Pain(
        43,
        "a tracker hangs or asks to log in",
        ("trl#1103",),
        (
            "runs/test_trackers.py::test_wandb_writes_an_offline_run_and_asks_nothing",
            "runs/test_trackers.py::test_a_tracker_that_fails_is_told_once_and_left_out",
        ),
    ),
    Pain(
        44,
        "nobody knows which columns a file needs",
        ("axolotl#1645", "OpenRLHF#909"),
        (
            "data_reading/test_formats.py::test_a_row_becomes_the_pair_it_means",
            "data_reading/test_formats.py::test_a_bad_row_of_a_family_is_named",
            "data_reading/test_formats.py::test_what_is_no_preference_file_is_said_to_be_what_it_is",
        ),
    ),
    Pain(
        45,
        "the mask counts no token, and the loss looks normal",
        ("Soup v0.73.3",),
        (
            "training/test_gates.py::test_examples_without_an_end_and_prompts_with_two_bos_are_found",
            "training/test_budget.py::test_sft_trains_on_the_tokens_of_its_demonstrations",
        ),
    ),
    Pain(
        47,
        "nobody answers which method to use",
        ("LlamaFactory#866", "trl#1106", "Online-RLHF#8", "marin#2473"),
        ("study/test_verdict.py::test_cases", "study/test_verdict.py::test_cannot_tell_says_what_it_would_take"),
    ),
)
