//! The kernels of `kernels.ptx` by name: the one place from which a launch can take one.
//!
//! A [`Kernel`] is made here only, so that no launch is outside this table; `tests/suite/devices.rs` compares the table with the
//! PTX and with the launches, both ways.

use super::Stored;

/// A kernel of `kernels.ptx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kernel(&'static str);

/// A kernel for numbers in f32, and the same for numbers in bf16.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernels([Kernel; 2]);

impl Kernel {
    /// As the PTX has it.
    pub fn name(self) -> &'static str {
        self.0
    }
}

impl Kernels {
    /// The one for numbers that are stored as `stored`.
    pub fn of(self, stored: Stored) -> Kernel {
        match stored {
            Stored::F32 => self.0[0],
            Stored::Bf16 => self.0[1],
        }
    }
}

macro_rules! one {
    ($($constant:ident $name:literal)*) => { impl Kernel { $(pub const $constant: Kernel = Kernel($name);)* } };
}

macro_rules! two {
    ($($constant:ident $single:literal $half:literal)*) => { impl Kernels { $(pub const $constant: Kernels = Kernels([Kernel($single), Kernel($half)]);)* } };
}

one! {
    ADAM_VECTORS "adam_vectors"
    AUX_FACTOR "aux_factor"
    BEGIN_STEP "begin_step"
    CLIP_FACTOR "clip_factor"
    COLLECT_ROWS "collect_rows"
    COUNT_ACROSS "count_across"
    COUNT_DEAD "count_dead"
    COUNT_EDGES "count_edges"
    COUNT_KEPT "count_kept"
    COUNT_RANKED "count_ranked"
    COUNT_ROWS "count_rows"
    CUT_BATCH "cut_batch"
    CUT_GROUPS "cut_groups"
    CUT_TOKENS "cut_tokens"
    EDGE_PRODUCTS "edge_products"
    ENTRY_GRADIENTS "entry_gradients"
    FILL_FEATURES "fill_features"
    GATHER "gather"
    MODEL_OUTLIERS "model_outliers"
    NARROW_ALL "narrow_all"
    ORDER_FEATURES "order_features"
    RANKING_BEGIN "ranking_begin"
    RANKING_COUNT "ranking_count"
    RANKING_PICK "ranking_pick"
    REPORT_AUX "report_aux"
    REPORT_ERRORS "report_errors"
    REPORT_LAYERS "report_layers"
    SCAN_EDGES "scan_edges"
    SCAN_FEATURES "scan_features"
    SCAN_ROWS "scan_rows"
    SCAN_TIES "scan_ties"
    SET_TOTAL "set_total"
    SUM_CUTS "sum_cuts"
    SUM_PARTS "sum_parts"
    TARGET_SCALES "target_scales"
    TIES_ACROSS "ties_across"
    TOP_DEAD "top_dead"
    TOP_ROWS "top_rows"
    WRITE_EDGES "write_edges"
    WRITE_KEPT "write_kept"
    WRITE_RANKED "write_ranked"
    WRITE_ROWS "write_rows"
}

two! {
    ATTEND_128 "attend_128_f32" "attend_128_bf16"
    ATTEND_64 "attend_64_f32" "attend_64_bf16"
    COLUMN_SUMS "column_sums_f32" "column_sums_bf16"
    DECODE "decode_f32" "decode_bf16"
    DECODE_DEAD "decode_dead_f32" "decode_dead_bf16"
    DECODE_TIED "decode_tied_f32" "decode_tied_bf16"
    FEATURE_TERMS "feature_terms_f32" "feature_terms_bf16"
    MEASURE "measure_f32" "measure_bf16"
    MEET_FULL "meet_f32_full" "meet_bf16_full"
    MEET_SMALL "meet_f32_small" "meet_bf16_small"
    MODEL_GATE "model_gate_f32" "model_gate_bf16"
    MODEL_NORM "model_norm_f32" "model_norm_bf16"
    PICK_NORMAL_BF16 "pick_normal_bf16_f32" "pick_normal_bf16_bf16"
    PICK_NORMAL_F32 "pick_normal_f32_f32" "pick_normal_f32_bf16"
    PICK_ROWS "pick_rows_f32" "pick_rows_bf16"
    PRODUCTS "products_f32" "products_bf16"
    SCATTER "scatter_f32" "scatter_bf16"
    SPEND_FULL "spend_f32_full" "spend_bf16_full"
    SPEND_SMALL "spend_f32_small" "spend_bf16_small"
    SQUARE_ROWS "square_rows_f32" "square_rows_bf16"
    SUM_GROUPS "sum_groups_f32" "sum_groups_bf16"
    SUM_LATER "sum_later_f32" "sum_later_bf16"
}
