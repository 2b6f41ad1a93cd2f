"""Answers that decline, and answers that only sound like it; the latter hold a negation, a gap or a silence of fact."""

import pytest

from ev_platform.evaluation.metrics import is_abstention

NO_ANSWER = "The passages do not say."

DECLINES = """
The passages do not say.
the passages do not say
The passages do not say how long it takes.
The passages do not say. Please ask your dealer.
"The passages do not say."
The passage doesn't say.
The passages don’t mention the price.
The passages do not specify which cable is needed.
I don't know.
I do not know the answer to this question.
Sorry, I don't know.
I'm sorry, but the context does not contain this information.
I am not sure.
We cannot answer this from the passages.
I can't find the answer in the text.
I could not determine this from the documents.
I'm unable to answer the question with the given passages.
Unable to determine.
Unknown.
N/A
No answer.
Unanswerable
Not mentioned.
Not stated in the passages.
Not specified
It is not mentioned in the context.
The maximum altitude is not stated in the passages.
This isn't specified anywhere in the text.
The price of the cable is not explicitly mentioned in the provided context.
The answer is not in the passages.
The question cannot be answered from the context.
This question can't be answered.
It cannot be determined from the given information.
That cannot be answered based on the passages.
There is no information about the weight.
There's no mention of a refund in the article.
There is not enough information to answer.
No information is given.
No information about the tyre pressure is provided.
Not enough information.
Insufficient information to answer the question.
The text does not provide any information on the warranty.
The given context doesn't give enough details.
Based on the passages, it cannot be determined.
According to the text, this is not specified.
Unfortunately, the documents do not contain an answer.
None of the passages mentions the range.
Nothing in the passages says who built it.
The context is silent on this.
The passages contain no information on charging at sea.
The manual says nothing about this.
The provided information does not include the date.
It seems that the passages do not say.
Answer: The passages do not say.
The passages do not contain the price of the cable.
The context does not include when it was built.
No relevant information was found in the documents.
"""

ANSWERS = """
No.
No, it is not allowed.
None.
None of the sockets may be used in the rain.
Nothing.
No, the passages between the bays must stay free.
The passages do not say exactly, but up to 22 kW is usual.
The text does not give a number; however, the table lists 11 kW.
Although the passages do not say so directly, the cable is Type 2.
VAT is not included in the price.
Charging is not covered by the warranty.
The serial number is not stated on the label of older models.
It is not known to be harmful.
The cable does not have a fuse.
The document does not have to be signed.
The context menu does not close by itself.
The manual release strap is behind the left side panel.
Not before the battery has cooled down.
Not included.
Not more than 32 A.
Not available in winter.
The driver does not know the power in advance.
Drivers who don't know the code ask the operator.
I don't have to pay: the first hour is free.
Do not open the cover.
You cannot charge without a card.
The card cannot be used twice.
The fault cannot be found without a meter.
The leak can't be found by eye; use the spray.
There is no charge on Sundays.
There is no time limit.
There is no answer-back tone on older units.
No information leaves the vehicle.
No data is sent abroad.
No details of the card are stored.
No evidence of purchase is needed.
Insufficient insulation.
Not enough coolant.
The sensor says nothing.
An unknown card.
Unable to start, the car shows error 14.
The sources of power are wind and sun.
In the documents folder of the boot, not in the glove box.
He is not sure to win, said the mayor.
The operator is silent at night.
It never says more than five words.
The text message does not contain the PIN.
The article was not written by Smith.
The answer was found by Gauss.
Parliament did not mention him until 1912.
Nothing in the contract obliges the tenant to pay.
30 minutes. The passages do not say whether a break helps.
The context does not have to be closed by hand.
The document does not contain a signature.
Not provided.
Well
Sorry seems to be the hardest word.
"""


def lines(text):
    return [line for line in text.strip().split("\n") if line]


@pytest.mark.parametrize("answer", lines(DECLINES))
def test_answer_that_says_there_is_none_is_an_abstention(answer):
    assert is_abstention(answer, NO_ANSWER)


@pytest.mark.parametrize("answer", lines(ANSWERS))
def test_answer_with_a_negation_is_no_abstention(answer):
    assert not is_abstention(answer, NO_ANSWER)


@pytest.mark.parametrize("answer", ["", "  ", "\n", "...", '""'])
def test_empty_answer_is_an_abstention_as_in_squad_2(answer):
    assert is_abstention(answer, NO_ANSWER)


def test_the_task_s_own_sentence_declines_in_any_language():
    own = "Das steht nicht im Text."
    assert is_abstention("Das steht nicht im Text.", own)
    assert is_abstention("das steht nicht im text, leider", own)
    assert not is_abstention("Das steht nicht im Textfeld.", own)
    assert not is_abstention("Das steht im Text.", own)
    assert not is_abstention("Das steht nicht im Text.", NO_ANSWER)
    polite = "Sorry, but that is beyond me, however hard I try."
    assert is_abstention(polite.lower(), polite)
    assert not is_abstention("Sorry, but that is beyond the fence.", polite)


def test_short_sentence_of_a_task_declines_alone_and_not_as_the_beginning_of_an_answer():
    assert is_abstention("None.", "None")
    assert not is_abstention("None of the sockets.", "None")
    assert not is_abstention("No answer-back tone.", "No answer")
