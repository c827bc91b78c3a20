"""What a reader of the result must know."""

__all__ = ["NOTES"]

NOTES = (
    "Planted truth: a word is erased from layer p on, or never. From the residual after p blocks on, the states at all "
    "positions are those of a run whose token embedding of the word is the mean over the words of its class (6 "
    "colours, 4 textures, 6 shapes): nothing there depends on which word of the class it was. The word is there at "
    "layer l if l < p. AUC: the chance that a method's score is higher where the word is there than where it is "
    "erased, ties half, within a class and layer; mean over classes and layers 1 to L. Intervals: jackknife over "
    "prompts.",
    "Placebos. Own word, another word erased: the asked word is there in all items, and labels are of another word; "
    "above .5 a method notices that something is missing and not what. Another prompt's word: the same items, asked "
    "for the word of another prompt, which now and then is the same; above .5 a method says yes to any word of a whole "
    "state. A graded method that is sure of another word lies below .5, and is right to. A method that knows positions "
    "and no words gives 0 to a word that the prompt does not have.",
    "Where a word is erased the encoder is shown a mixture that it was not trained on, and the picture still has some "
    "colour: where it is the word's by chance, a method of yes and no is wrong, so that the best that it can have of "
    "six words is about 1 - 1/12. Scores of different methods are on different scales; AUC reads their order alone.",
)
