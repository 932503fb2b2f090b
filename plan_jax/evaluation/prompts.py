"""What a class is called in a zero-shot prompt: fixed lists, so that a score never depends on a draw.

A class's score is the mean over its prompts. Source of the phantom's names: the words its reports use, all of them.
For other data sets a class that has no list here is asked for by its own name [ours].
"""

PROMPTS: dict[str, tuple[str, ...]] = {
    "nodule": ("there is a nodule", "there is a coin lesion"),
    "cavity": ("there is a cavity", "there is a ring shadow", "there is cavitation"),
    "atelectasis": ("there is atelectasis", "there is collapse", "there is a linear band"),
    "reticulation": ("there is reticulation", "there is a reticular pattern", "there are interstitial lines"),
    "bulla": ("there is a bulla", "there is a bleb"),
    "consolidation": ("there is consolidation", "there is an infiltrate"),
    "fracture": ("there is a fracture", "there is a broken rib"),
    "effusion": ("there is an effusion", "there is pleural fluid"),
    "opacity": ("there is an opacity", "there is a hazy density"),
    "pneumothorax": ("there is a pneumothorax", "there is a collapsed lung"),
    "cardiomegaly": ("there is cardiomegaly", "there is an enlarged heart"),
    "edema": ("there is edema", "there is vascular congestion"),
    "pleural thickening": ("there is pleural thickening", "there is a thick pleura"),
}


def prompts_of(name: str) -> tuple[str, ...]:
    """The prompts of a class."""
    return PROMPTS.get(name, (f"there is {name.lower()}",))
