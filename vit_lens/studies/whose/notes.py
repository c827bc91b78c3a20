"""What a reader of the result must know."""

__all__ = ["NOTES", "NO_READERS", "RULE"]

NO_READERS = "No denoisers of other layers were given (--reader): what they draw is not in this result."
RULE = (
    "Denoisers of other layers: each was trained as the encoder's own, and is shown h_0 (embeddings), h_4, or the"
    ' end of the text alone, at what it was trained on; guidance leads away from what it knows as the text "". '
    "The ratio is its accuracy above that of mismatched prompts over that of the encoder's own denoiser at the "
    "last layer; below .1 of the latter there is none. Rule of the protocol: if the denoiser of h_0 draws scenes "
    "(layout and both objects, both orders of a scene one unit) at .8 of the own denoiser's rate or more, 'the "
    "encoder builds the scene' is refuted for this world. The interval over encoders decides: refuted where all "
    "of it is at .8 or above, not refuted where all of it is below, else open. The result of one encoder states "
    "its ratio and decides nothing."
)
NOTES = (
    "Accuracy: the share of pictures that show the part, as the judge sees it; chance: of another prompt of the "
    "kind at the same layer. Half-rise: the layer at which accuracy less chance first has half of its last value;"
    " none where that is below .1. Every reading has the same prompts and the same noise. Intervals: jackknife "
    "over prompts.",
    "Interpolation: h_0 + t (h_L - h_0) before the final norm, position by position, t in [0, 1] such that the "
    "cosine to h_L, without the mean over dimensions that the norm takes away, is the layer's own. Positions that"
    " are farther from h_L than h_0 is get h_0; the table 'interpolation' says how many. Positive: the layer's "
    "own picture is later than that of the mixture. Only an order of parts beyond the null's is the encoder's: "
    "less the mean of all parts, 0 is no order of its own; a rank correlation of 1 says that the mixture has the "
    "same order.",
    "Tuned lens: an affine map from each layer to the last, one for all positions, ridge towards the identity. "
    "Probes: ridge regression to one-hot, at each layer anew, on the residual before the norm; in the place of "
    "chance stand probes of shuffled labels, and accuracy less theirs is the selectivity. Both are fitted on "
    "sentences without names, so that no name's meaning was told to them.",
    "Shuffled words: what the encoder makes of the prompt's words in another order, which may say another scene. "
    "Random weights: the same architecture, its weights drawn with the mean and the spread of each trained "
    'tensor; the trained encoder\'s "" is what guidance leads away from.',
)
