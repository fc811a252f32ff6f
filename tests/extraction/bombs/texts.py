"""Mail, HTML, RTF and plain text."""

from tests.extraction.bombs.values import Bombs


def mail_in_mail() -> bytes:
    mail = b"Subject: inside\r\n\r\nthe innermost\r\n"
    for level in range(3000):
        mail = b"Subject: %d\r\nMIME-Version: 1.0\r\nContent-Type: message/rfc822\r\n\r\n" % level + mail
    return mail


def mail_of_many_parts() -> bytes:
    head = b"Subject: many\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
    return head + b"--b\r\nContent-Type: text/plain\r\n\r\npart\r\n" * 200_000 + b"--b--\r\n"


def mail_nested_in_parts() -> bytes:
    head = b"Subject: deep\r\nMIME-Version: 1.0\r\n"
    opened = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (level, level) for level in range(5000)
    )
    return head + opened + b"Content-Type: text/plain\r\n\r\ndeep\r\n"


def html_nested_deeply() -> bytes:
    return b"<html><body>" + b"<div><b><table><tr><td>" * 60_000 + b"deep"


def html_of_many_attributes() -> bytes:
    return b"<html><body><p " + b" ".join(b"a%d=1" % n for n in range(300_000)) + b">text</p></body></html>"


def rtf_nested_deeply() -> bytes:
    return b"{\\rtf1 " + b"{\\b " * 500_000 + b"deep" + b"}" * 500_000 + b"}"


def rtf_with_a_huge_binary() -> bytes:
    return b"{\\rtf1 {\\pict\\bin2147483647 xx} text}"


def text_without_a_space() -> bytes:
    return b"x" * 4_000_000


def text_of_one_line() -> bytes:
    return ("ein wort und noch eines, " * 160_000).encode()


def text_of_combining_marks() -> bytes:
    return ("a" + "\u0301" * 300_000).encode()


def text_of_lone_surrogates() -> bytes:
    return ("before \ud800\udfff\x00 after " * 20_000).encode("utf-8", "surrogatepass")


def text_of_utf_16_without_a_mark() -> bytes:
    return ("Zwei Bytes je Zeichen. " * 20_000).encode("utf-16-le")


def json_nested_deeply() -> bytes:
    return b"[" * 2_000_000


def csv_of_one_row() -> bytes:
    return b"a,b," * 1_000_000


BOMBS: Bombs = {
    "eml": (mail_in_mail, mail_of_many_parts, mail_nested_in_parts),
    "html": (html_nested_deeply, html_of_many_attributes),
    "rtf": (rtf_nested_deeply, rtf_with_a_huge_binary),
    "txt": (
        text_without_a_space,
        text_of_one_line,
        text_of_combining_marks,
        text_of_lone_surrogates,
        text_of_utf_16_without_a_mark,
    ),
    "json": (json_nested_deeply,),
    "csv": (csv_of_one_row,),
}
