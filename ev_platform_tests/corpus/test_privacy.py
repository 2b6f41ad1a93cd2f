import time

import pytest

from ev_platform.corpus.privacy import mask_personal_data

MARKS = ("[email]", "[phone]", "[card]", "[iban]")
PERSONAL = {
    "Write to jane.doe@charge-point.co.uk today.": "Write to [email] today.",
    "info@company.de": "[email]",
    "Mail: <O'Neil+ev@mail.company.io>.": "Mail: <O'[email]>.",
    "[Write to us](mailto:sales@company.com)": "[Write to us](mailto:[email])",
    "jane\\_doe@company.com": "[email]",
    "jürgen@müller.de, a_b@x.museum": "[email], [email]",
    "jane.doe [at] company.com": "[email]",
    "jane(at)company.com": "[email]",
    "{gal,brendan, shaver}@company.com": "[email]",
    "Call +49 30 901820 now": "Call [phone] now",
    "+1 650-253-0000": "[phone]",
    "+1 555 123 4567, +1-202-555-0143, +15551234567": "[phone], [phone], [phone]",
    "(555) 123-4567 or 555-123-4567": "[phone] or [phone]",
    "+32 489 24 77 60.": "[phone].",
    "+44 (0)20 7031 3000": "[phone]",
    "0032 489 24 77 60": "[phone]",
    "(303) 275-4000": "[phone]",
    "303-275-4000": "[phone]",
    "303.275.4000": "[phone]",
    "1-800-555-0199": "[phone]",
    "1-888-758-4389": "[phone]",
    "1-800-FLOWERS": "[phone]",
    "CO,80401,,888-758-4389,E": "CO,80401,,[phone],E",
    "<phone>888-758-4389</phone>": "<phone>[phone]</phone>",
    "Telefon: 06022 651 913 0": "Telefon: [phone]",
    "Tel. 0611 1408-0": "Tel. [phone]",
    "| Fax | 912 345 678 |": "| Fax | [phone] |",
    "Call us on 020 7946 0000": "Call us on [phone]",
    "WhatsApp **11 4567 8901**": "WhatsApp **[phone]**",
    "01654 705950": "[phone]",
    "Ring 020 7946 0958 or 0800 123 4567.": "Ring [phone] or [phone].",
    "Tél. : 01 23 45 67 89": "Tél. : [phone]",
    "Card 4111 1111 1111 1111.": "Card [card].",
    "4111111111111111": "[card]",
    "5500-0000-0000-0004": "[card]",
    "3782 822463 10005": "[card]",
    "6011000990139424": "[card]",
    "IBAN DE89 3704 0044 0532 0130 00": "IBAN [iban]",
    "GB82WEST12345698765432,": "[iban],",
    "NL91 ABNA 0417 1643 00": "[iban]",
}
TECHNICAL = [
    "OCPP 1.6, 2.0.1 and 2.1; OCPI 2.2.1-d2",
    "IEC 61851-1:2017, IEC 62196-2, ISO 15118-20, IEC 61000-3-12",
    "From 2024-03-05 12:30 to 05.03.2024, 03/05/2024 or 2015-06-30T21:59:59Z",
    "2024-03-05T12:30:00.000+01:00",
    "Open 08:00-18:00, 24/7, 2024/25",
    "http://192.168.0.1:8080 or 10.0.0.255 with 255.255.255.0",
    "call 192.168.100.1 for the status page",
    "serial number 1234567890123 or SN0012345678",
    "created 1700000000000 (milliseconds), 1700000000 (seconds)",
    "1,299.00 EUR, $1,234,567.89, 12 345 678 kWh",
    "registers 40001-40020, 30001 - 30125, 0x1000-0x10FF",
    "DE*ABC*E123456, FR*A23*E45B*78C, DE-ABC-C12345678-9, +49*123*456789",
    "51.5074, -0.1278 and 39.743078,-105.152278",
    "+40.20361-075.00417/",
    "123e4567-e89b-12d3-a456-426614174000",
    "0x48656c6c6f20 and DEADBEEF12345678 and 00:1A:2B:3C:4D:5E",
    "part number 650-2530-000, P/N 12-345-6789-0",
    "0203 0405 0607, 0123 4567 8901, 0012345678901",
    "| 10 | 20 | 30 | 40 | 50 | 60 | 70 |",
    "10 20 30 40 50 60 70 80 90",
    "0100 0200 0300 0400 0500",
    "4001 4002 4003 4004 4005 4006",
    "2010 2011 2012 2013",
    "45 12 33 78 90 12 11 05 01",
    "0.0099983215332 0.02556424264554",
    "+51.507400, +12.3456789 and +40.20361-075.00417",
    "05 12 33 78 90",
    "+5 V, +12 V, +/- 3 %, +100 200 300",
    "+32 A at 400 V, 16 A, 11 kW",
    "EAN 4006381333931, ISBN 978-3-16-148410-0",
    "4111 1111 1111 1112",  # fails the check digit
    "DE89 3704 0044 0532 0130 01",  # fails the remainder
    "user@example.com, a@b.example, me@host.test, x@example.org",
    "mqtt://charger:secret@broker.company.com:1883",
    "git@github.com:evcc-io/evcc.git",
    "icon@2x.png and @media, @evcc/core@1.2.3",
    "firmware 4.3.2.1089, v2024.11.0, build 20241105.1",
    "doi:10.1016/j.apenergy.2015.01.004",
    "Call StartTransaction with connectorId 1 and idTag 04A1B2C3",
    "Phone 2015-06-30",
    "regulation (EU) 2023/1804, 2014/94/EU, OJ L 234, 22.9.2023",
    "353918051234560",  # an IMEI: its check digit is right, but no card has 15 digits and begins so
    "| Phone | Year |\n| --- | --- |\n| none | 2023 |",
]


@pytest.mark.parametrize(("text", "masked"), PERSONAL.items())
def test_personal_data_is_masked(text, masked):
    assert mask_personal_data(text) == (masked, sum(masked.count(mark) for mark in MARKS))


@pytest.mark.parametrize("text", TECHNICAL)
def test_technical_text_is_not_hurt(text):
    assert mask_personal_data(text) == (text, 0)


def test_numbers_do_not_reach_over_line_ends_and_cells():
    table = "| 4111 1111 | 1111 1111 |\n| +49 30 | 901820 |\n| jane@ | company.com |\n+49 30\n901820\nTel.\n0611 1408"
    assert mask_personal_data(table) == (table, 0)


def test_every_replacement_is_counted_and_masking_again_changes_nothing():
    text = "\n".join(PERSONAL)
    masked, n = mask_personal_data(text)
    assert n == sum(value.count(mark) for value in PERSONAL.values() for mark in MARKS)
    assert mask_personal_data(masked) == (masked, 0)


@pytest.mark.parametrize(
    "part", ["a", "a.", "1 ", "1-", "+1", "x@", "a@a.", "tel ", "{a,", "(0", "4111 ", "AB12", "a+b://", "\\_"]
)
def test_hostile_text_takes_linear_time(part):
    started = time.perf_counter()
    mask_personal_data(part * (200_000 // len(part)))
    assert time.perf_counter() - started < 5
