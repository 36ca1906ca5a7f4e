/**
 * What a hook may use, for editors. Put this file beside your scripts with a
 * jsconfig.json:
 *
 *   {"compilerOptions": {"lib": ["es2022"], "types": [], "checkJs": true, "strict": false}, "include": ["*.js", "hooks.d.ts"]}
 *
 * For moment and CryptoJS in full, install @types/moment-timezone and
 * @types/crypto-js and take their lines out here. What everything means is in
 * docs/hooks.md; "Events" and "Written in" below say where a global is there
 * and where a change of it has an effect. Where it has none it lasts until the
 * handler returns.
 */

/** Anything that JSON can hold; a body that is no JSON is text, none is null in a request and "" in an answer. */
type Json = any;

/** Names in their usual form, X-Request-Id; look-up ignores case. A header that came more than once, and always Set-Cookie, is a list. */
interface Headers { [name: string]: any; }

/** What a handler returns: false stops (in action_condition it is the exit), everything else goes on. A promise is waited for. */
type Handler = () => any;

/** The functions that are called if a script has them, by their names. */
interface Handlers {
  /** A request reached a webhook, before anything else; false answers it with method_response and stops. */
  before_webhook?: Handler;
  /** A webhook was received; false drops it. */
  after_webhook?: Handler;
  /** Before each request, once a page. */
  before_action?: Handler;
  /** After an answer of 200 to 299, once a page. */
  after_action?: Handler;
  /** Once, when all pages are in, also where there is but one. */
  after_action_paging?: Handler;
  /** After any other answer, or none. */
  after_error?: Handler;
  /** Last: the step's exit. Connector and method only. */
  action_condition?: Handler;
  /** Before a person is sent to the provider. Connector only, as all that follow. */
  before_oauth2_authorise?: Handler;
  /** Before a token request without a refresh token. */
  before_oauth2_token?: Handler;
  /** After its answer. */
  after_oauth2_token?: Handler;
  /** Before a token request with a refresh token. */
  before_oauth2_refresh?: Handler;
  /** After its answer. */
  after_oauth2_refresh?: Handler;
}

// Exceptions

/**
 * Thrown, it parks the execution until the OAuth 2 token is renewed. From
 * connector and method scripts, in before_action, after_action,
 * after_action_paging and after_error.
 */
declare const AuthRefreshException: { new (message?: string): Error; (message?: string): Error; readonly prototype: Error };

/** Thrown, it parks the execution until the login method has opened a new session. From where AuthRefreshException may be thrown. */
declare const AuthSessionException: { new (message?: string): Error; (message?: string): Error; readonly prototype: Error };

/** Thrown, it defers the execution by so many seconds (30 days at most). From connector and method scripts, in every event. */
declare const RetryLaterException: { new (seconds: number | string | Date, message?: string): Error; (seconds: number | string | Date, message?: string): Error; readonly prototype: Error };

// Functions

interface HttpRequestOptions {
  /** GET unless given. */
  method?: string;
  url: string;
  /** The query. */
  parameters?: { [name: string]: any };
  /** What is set here is not replaced by the connector's authentication, be it empty. Host cannot be set. */
  headers?: { [name: string]: any };
  /** Text is sent as it is, an object as its JSON. */
  data?: any;
}

interface HttpResponse {
  status_code: number;
  headers: Headers;
  /** The body as text; JSON is for the script to parse. */
  content: string;
  /** What was asked for, without the connector's authentication. */
  request: { method: string; url: string; headers: { [name: string]: any }; data?: string };
}

/**
 * Makes a request, 50 an event at most, with the connector's authentication
 * where its own hosts are asked. A status is never thrown.
 * @throws {Error} where no answer came
 */
declare function http_request(options: HttpRequestOptions): HttpResponse;

/** In any case of letters; UTF-8 where none is given. */
type Charset = 'ascii' | 'iso-8859-1' | 'utf-7' | 'utf-8' | 'utf-16' | 'utf-16le' | 'utf-16be' | 'utf-32' | 'utf-32le' | 'utf-32be';

/**
 * Base64 of a text's bytes. What the set lacks is folded to the base letter (iso-8859-1) or ?.
 * @throws {Error} of an unknown set
 */
declare function btoa(text: any, charset?: Charset | Uppercase<Charset>): string;

/**
 * The text of base64. Bytes that are none in that set become U+FFFD, in ascii ?.
 * @throws {Error} of an unknown set, and of what is no base64
 */
declare function atob(base64: string, charset?: Charset | Uppercase<Charset>): string;

/** In any case of letters. */
type SignAlgorithm = 'HMAC-SHA1' | 'HMAC-SHA256' | 'HMAC-SHA512' | 'RSA-SHA1' | 'RSA-SHA224' | 'RSA-SHA256' | 'RSA-SHA384' | 'RSA-SHA512';

/**
 * A signature in base64. An RSA key is PEM, PKCS #1 or PKCS #8, its signature PKCS #1 v1.5.
 * @throws {Error} of an unknown algorithm or a key that is none
 */
declare function cyclr_sign(algorithm: SignAlgorithm | Lowercase<SignAlgorithm>, key: string, text: string): string;

/**
 * Rows of CSV as objects of texts; without a header their members are Field1, Field2, …
 * @param delimiter one character; a comma where none is given
 * @throws {Error} of a longer delimiter
 */
declare function cyclr_csv_parse(text: string, delimiter?: string, hasHeader?: boolean): { [field: string]: string }[];

/**
 * XML without declaration or indentation, of an object with one root: "@name" is an attribute, "#text" the text beside it, a list elements of one name.
 * @throws {Error} of what XML cannot hold
 */
declare function cyclr_xml_serialize(root: { [name: string]: any }): string;

/**
 * The reverse: texts stay texts.
 * @throws {Error} that says the line
 */
declare function cyclr_xml_deserialize(xml: string): { [name: string]: any };

// Storage: of this credential, in all cycles (cyclr_) or only in the step's own (cycle_). Keys have 1 to 128
// characters, values 50,000; a store 1,000,000 items; an event makes 1,000 calls at most. Values are texts.

/** All values, in the order in which their keys were first stored. */
declare function cyclr_storage_list_values(): string[];
/** All keys, in that order. */
declare function cyclr_storage_list_keys(): string[];
/** A value, or null where there is none. */
declare function cyclr_storage_get(key: string): any;
/** Stores a value, an object as its JSON. */
declare function cyclr_storage_set(key: string, value: any): void;
/** Adds a text at the end of what is stored. */
declare function cyclr_storage_append(key: string, value: any): void;
declare function cyclr_storage_delete(key: string): void;
declare function cyclr_storage_delete_all(): void;
/**
 * Counts up, from 0 where there is nothing, in one step: no other execution comes between.
 * @param amount 1 where none is given; may be fractional
 * @throws {Error} where a text is stored that is no number
 */
declare function cyclr_storage_increment(key: string, amount?: number): string;
/** Counts down. */
declare function cyclr_storage_decrement(key: string, amount?: number): string;
declare function cycle_storage_list_values(): string[];
declare function cycle_storage_list_keys(): string[];
declare function cycle_storage_get(key: string): any;
declare function cycle_storage_set(key: string, value: any): void;
declare function cycle_storage_append(key: string, value: any): void;
declare function cycle_storage_delete(key: string): void;
declare function cycle_storage_delete_all(): void;
declare function cycle_storage_increment(key: string, amount?: number): string;
declare function cycle_storage_decrement(key: string, amount?: number): string;

// Libraries. They are var, so that a script may say var moment = require('moment').

/** moment with time zones and locales; local time is UTC. */
declare var moment: any;

/** CryptoJS, whole; toString() is hex, and takes an encoder such as CryptoJS.enc.Base64. */
declare var CryptoJS: any;

/**
 * The two libraries and their parts: 'crypto-js/sha256', 'moment/locale/de'.
 * @throws {Error} of any other name
 */
declare function require(name: 'moment' | 'moment-timezone' | 'crypto-js' | `crypto-js/${string}` | `moment/locale/${string}`): any;

declare module 'moment';
declare module 'moment-timezone';
declare module 'moment/locale/*';
declare module 'crypto-js';
declare module 'crypto-js/*';

interface WebCrypto {
  /** Fills a typed array, of 65,536 bytes at most, with random bytes. */
  getRandomValues<T extends ArrayBufferView>(array: T): T;
}

declare var crypto: WebCrypto;

interface Log {
  (...values: any[]): void;
}

/** To the worker's log, with the execution's id and secrets masked: 200 lines an event. All do the same. */
declare var console: { log: Log; info: Log; warn: Log; error: Log; debug: Log; trace: Log };

// Data of the events

/**
 * An object that lives as long as the execution, over pages, parks and retries.
 * Events: all. Written in: all.
 */
declare let action_data: any;

/** Events: all. */
declare let cycle_id: string;

/** Events: all. */
declare let cycle_step_id: string;

/**
 * The cycle's variables, by name; not in inline script.
 * Events: all.
 */
declare let cycle_variables: { [name: string]: any };

/**
 * The credential's account_id.
 * Events: all.
 */
declare let cyclr_account_id: string;

/** Events: all. */
declare let external_account_id: string;

/**
 * When this step last ran without an error, ISO 8601 in UTC: 2026-11-25T10:00:00Z.
 * Events: all.
 */
declare let last_successful_run_date: string;

/**
 * The API key, the Basic text, or the access token; null for others.
 * Events: all.
 */
declare let method_auth_value: string | null;

/**
 * The endpoint with its merge fields, after before_action the URL that was called; the webhook's URL; the authorise URL with its query.
 * Events: before_action, after_action, after_action_paging, after_error, action_condition, before_webhook, after_webhook, before_oauth2_authorise.
 * Written in: before_action, before_oauth2_authorise.
 */
declare let method_endpoint: string;

interface MethodError {
  /** null where no answer came. */
  statusCode: number | null;
  reasonPhrase: string;
  /** The body as text. For isSuccess: the answer in its place. */
  content: string;
  headers: Headers;
  /** A short text, never empty. */
  error: string;
  /** true; set one of the next two in its place. */
  isError: boolean;
  /** true makes it a success. */
  isSuccess: boolean;
  /** true ends the execution with a warning. */
  isWarning: boolean;
}

/**
 * Events: after_error. Written in: after_error.
 */
declare let method_error: MethodError;

/** Events: before_action, after_action, after_action_paging, after_error, action_condition, before_webhook, after_webhook. */
declare let method_name: string;

/**
 * The body: null where there is none. Of a webhook what came; of a token request its form.
 * Events: before_action, after_action, after_action_paging, after_error, action_condition, before_webhook, after_webhook, before_oauth2_token, before_oauth2_refresh.
 * Written in: before_action, before_oauth2_token, before_oauth2_refresh.
 */
declare let method_request: Json;

/**
 * Events: before_action, after_action, after_action_paging, after_error, action_condition, before_webhook, after_webhook, before_oauth2_token, before_oauth2_refresh.
 * Written in: before_action, before_oauth2_token, before_oauth2_refresh.
 */
declare let method_request_headers: Headers;

/**
 * The merge-field parameters, by name; they carry values from before_action to what comes after.
 * Events: before_action, after_action, after_action_paging, after_error, action_condition, before_webhook, after_webhook.
 * Written in: before_action, after_action, after_action_paging, after_error, action_condition, before_webhook, after_webhook.
 */
declare let method_request_mergefields: { [name: string]: any };

/**
 * The HTTP method with which a webhook was called: GET, POST and the like.
 * Events: before_webhook, after_webhook.
 */
declare let method_request_method: string;

/**
 * The query, by name.
 * Events: before_action, after_action, after_action_paging, after_error, action_condition, before_webhook, after_webhook.
 * Written in: before_action.
 */
declare let method_request_parameters: { [name: string]: any };

/**
 * The answer: of one page in after_action, of all in after_action_paging. In before_webhook what the caller gets if it is refused, in after_webhook the body that came.
 * Events: after_action, after_action_paging, action_condition, before_webhook, after_webhook, after_oauth2_token, after_oauth2_refresh.
 * Written in: after_action, after_action_paging, before_webhook, after_webhook, after_oauth2_token, after_oauth2_refresh.
 */
declare let method_response: Json;

/**
 * The locations of the method's response fields.
 * Events: all.
 */
declare let method_response_fields: string[];

/**
 * Of these, those that later steps use.
 * Events: all.
 */
declare let method_response_fields_in_use: string[];

/**
 * Events: after_action, after_action_paging, action_condition, before_webhook, after_oauth2_token, after_oauth2_refresh.
 * Written in: before_webhook.
 */
declare let method_response_headers: Headers;

/**
 * Set, it will be last_successful_run_date in the next run.
 * Events: after_action_paging. Written in: after_action_paging.
 */
declare let next_last_successful_run_date: string | Date | undefined;

/** Events: after_action, after_action_paging, action_condition. */
declare let reasonPhrase: string;

/** Events: all. */
declare let script_execution_context: 'RUNNING_TRANSACTION' | 'CONNECTOR_TESTING' | 'STEP_TESTING';

/**
 * The parameters with target script, by name.
 * Events: all.
 */
declare let script_parameters: { [name: string]: any };

/**
 * The session. What the login method's hooks write is the new one; in other calls it is, before a throw of AuthSessionException. Not from a step's script.
 * Events: before_action, after_action, after_action_paging, after_error, action_condition, before_webhook, after_webhook.
 * Written in: before_action, after_action, after_action_paging, after_error, action_condition, before_webhook, after_webhook.
 */
declare let session_properties: { [name: string]: any };

/**
 * null before an answer.
 * Events: before_action, after_action, after_action_paging, after_error, action_condition, before_webhook, after_webhook.
 */
declare let statusCode: number | null;

/** Events: all. */
declare let transaction_id: string;
