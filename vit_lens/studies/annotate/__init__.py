"""Annotation: what people and judges see in pictures, blind to where they come from; released tables recomputed."""

from vit_lens.lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__, {
    "Answer": ".answers", "ClipJudge": ".judge_clip", "Emergence": ".emerging", "ExactJudge": ".judge_exact",
    "FAMILIES": ".toker_prompts", "Item": ".sheet", "KeptAnswers": ".kept_answers",
    "PictureJudge": ".judging", "Question": ".sheet", "Sheet": ".sheet", "TokerCurves": ".toker", "Verdict": ".judging",
    "VqaJudge": ".judge_vqa", "agreement": ".agreeing", "ask": ".questions", "cost_words": ".toker",
    "emergence": ".emerging", "fleiss_kappa": ".kappa", "joined": ".shares", "judge_sheet": ".judging",
    "make_sheet": ".collecting", "means": ".shares", "means_figure": ".curves", "named_judge": ".judge_names",
    "paired": ".released_tables", "read_annotations": ".reading", "read_answers": ".answers",
    "read_families": ".toker_prompts", "read_released": ".released_tables", "recompute": ".released",
    "toker_curves": ".toker", "toker_plan": ".toker", "write_annotation_page": ".page", "write_answers": ".answers",
})  # fmt: skip
