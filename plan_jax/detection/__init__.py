"""A YOLOv3 detector on the frozen image encoder: head, training, boxes out of maps, average precision.

Redmon and Farhadi, *YOLOv3: An Incremental Improvement* (arXiv 1804.02767), in the form of MGCA's downstream task
(Wang et al., arXiv 2210.06044). It differs from that code in four things: the encoder's BatchNorm stays in inference
mode (there it is left training); a film is letterboxed (there it is stretched); an anchor that answers for a box is
never background (there it may be both); boxes are continuous (there every side is a pixel longer in an overlap).
"""
