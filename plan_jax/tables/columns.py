"""Every column of the results' tables, once: its heading, its name in results files, its digits."""

from plan_jax.tables.model import Column


def named(columns: tuple[Column, ...], *names: str) -> tuple[Column, ...]:
    """The columns of these names, in the order of the names."""
    by_name = {column.name: column for column in columns}
    return tuple(by_name[name] for name in names)


GROUNDING = (
    Column("signed CNR", "cnr_signed", 2),
    Column("pointing", "pointing", 3),
    Column("own above others", "own_above_others", 3),
    Column("AUROC", "auroc", 3),
    Column("mIoU raw", "miou_raw", 3),
    Column("mIoU minmax", "miou_minmax", 3),
    Column("|CNR|", "cnr_abs", 2),
)
LEADS = (
    Column("signed CNR less told prior's", "cnr_signed", 2),
    Column("pointing less told prior's", "pointing", 3),
)
RECALL = (
    Column("R@1", "r@1", 3),
    Column("R@5", "r@5", 3),
    Column("R@10", "r@10", 3),
    Column("median rank", "median_rank", 1),
)
PRECISION = tuple(Column(f"P@{k}", f"p@{k}", 3) for k in (1, 2, 5, 10, 50, 100))
ZERO_SHOT = (Column("AUROC", "auroc", 3), Column("accuracy", "accuracy", 3), Column("F1", "f1", 3))
ZERO_SHOT_MORE = (  # shown where a file has them
    Column("AUPRC", "auprc", 3),
    Column("precision", "precision", 3),
    Column("recall", "recall", 3),
)
DETECTION = (Column("mAP", "map", 3), Column("mAP, peers' count", "map_compat", 3))
PROBE = named(ZERO_SHOT, "auroc", "accuracy")
DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image"}
MACRO = ("f1", "precision", "recall")  # of classes; their mean over the classes is named NAME_macro
