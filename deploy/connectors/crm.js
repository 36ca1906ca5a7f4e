// A 403 of this API means that the token is dead, and nothing else.
function after_error() {
  var e = method_error;
  if (e != null && e.error != null && e.statusCode.toString() === '403') {
    throw new AuthRefreshException();
  }
  return true;
}
